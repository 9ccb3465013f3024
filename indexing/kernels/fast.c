/* The few loops that numba cannot write: bf16 dot products in registers. Loaded by _native.py through ctypes.
 *
 * Built when a C compiler is at hand (pyproject.toml: optional); everything here has a twin in _numba.py, and a test
 * that both agree. Functions are compiled for the instructions they need, and called only where chamfer_has_bf16()
 * says that the processor has them.
 */
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,f16c")))
#define BLOCK 12 /* document tokens whose products with 32 query tokens fill 24 of the 32 vector registers */

int chamfer_has_bf16(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16");
}

/* n float16 values to bf16, n a multiple of 32, rounding to nearest. */
BF16 static void half_to_bf16(const uint16_t *in, uint32_t *out, int64_t n) {
    for (int64_t i = 0; i < n; i += 32) {
        __m512 low = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(in + i)));
        __m512 high = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(in + i + 16)));
        _mm512_storeu_si512(out + i / 2, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

/* The largest product of each of 32 query tokens with `count` document tokens (bf16 pairs, row by row). The query lies
 * pair by pair: 16 tokens' pair p, then the next 16 tokens', `stride` words apart from pair to pair. */
BF16 static void best_of_32(const uint32_t *query, int64_t stride, const uint32_t *tokens, int64_t pairs,
                            int64_t count, __m512 best[2]) {
    for (int64_t first = 0; first < count; first += BLOCK) {
        const uint32_t *row[BLOCK];
        __m512 sum[BLOCK][2];
#pragma GCC unroll 12
        for (int t = 0; t < BLOCK; t++) { /* beyond the end the last token again: a maximum does not mind */
            int64_t at = first + t < count ? first + t : count - 1;
            row[t] = tokens + at * pairs;
            sum[t][0] = sum[t][1] = _mm512_setzero_ps();
        }
        for (int64_t p = 0; p < pairs; p++) {
            __m512bh a = (__m512bh)_mm512_loadu_si512(query + p * stride);
            __m512bh b = (__m512bh)_mm512_loadu_si512(query + p * stride + 16);
#pragma GCC unroll 12
            for (int t = 0; t < BLOCK; t++) {
                __m512bh d = (__m512bh)_mm512_set1_epi32((int)row[t][p]);
                sum[t][0] = _mm512_dpbf16_ps(sum[t][0], a, d);
                sum[t][1] = _mm512_dpbf16_ps(sum[t][1], b, d);
            }
        }
#pragma GCC unroll 12
        for (int t = 0; t < BLOCK; t++) {
            best[0] = _mm512_max_ps(best[0], sum[t][0]);
            best[1] = _mm512_max_ps(best[1], sum[t][1]);
        }
    }
}

/* MaxSim of one query with documents `rows`: out f32 [n_rows].
 *
 * query    bf16 pairs u32 [dim / 2, 32 groups], tokens beyond the query's zero: they add nothing
 * values   f16 [T, dim], dim a multiple of 32; offsets i64 [N + 1]
 * scratch  u32 [longest document * dim / 2]
 */
BF16 void chamfer_maxsim_half(const uint32_t *query, int64_t groups, int64_t dim, const uint16_t *values,
                              const int64_t *offsets, const int64_t *rows, int64_t n_rows, uint32_t *scratch,
                              float *out) {
    int64_t pairs = dim / 2;
    for (int64_t i = 0; i < n_rows; i++) {
        int64_t start = offsets[rows[i]], count = offsets[rows[i] + 1] - start;
        float total = 0.0f;
        if (count > 0) {
            half_to_bf16(values + start * dim, scratch, count * dim);
            for (int64_t g = 0; g < groups; g++) {
                __m512 best[2] = {_mm512_set1_ps(-3.4e38f), _mm512_set1_ps(-3.4e38f)};
                best_of_32(query + g * 32, groups * 32, scratch, pairs, count, best);
                total += _mm512_reduce_add_ps(best[0]) + _mm512_reduce_add_ps(best[1]);
            }
        }
        out[i] = total;
    }
}

/* Integer inner products of int8 rows with an int16 query, times a scale a row: out f32 [n]. dim a multiple of 32. */
__attribute__((target("avx512f,avx512bw"))) void chamfer_scan_int8(const int8_t *codes, const float *scales,
                                                                  const int16_t *query, int64_t n, int64_t dim,
                                                                  float *out) {
    for (int64_t row = 0; row < n; row++) {
        const int8_t *code = codes + row * dim;
        __m512i a = _mm512_setzero_si512(), b = _mm512_setzero_si512();
        int64_t d = 0;
        for (; d + 64 <= dim; d += 64) {
            __m512i x = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(code + d)));
            __m512i y = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(code + d + 32)));
            a = _mm512_add_epi32(a, _mm512_madd_epi16(x, _mm512_loadu_si512(query + d)));
            b = _mm512_add_epi32(b, _mm512_madd_epi16(y, _mm512_loadu_si512(query + d + 32)));
        }
        for (; d + 32 <= dim; d += 32) {
            __m512i x = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(code + d)));
            a = _mm512_add_epi32(a, _mm512_madd_epi16(x, _mm512_loadu_si512(query + d)));
        }
        out[row] = (float)_mm512_reduce_add_epi32(_mm512_add_epi32(a, b)) * scales[row];
    }
}

#else
int chamfer_has_bf16(void) { return 0; }
#endif
