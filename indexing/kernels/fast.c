/* Loops that numba cannot express: bf16 dot products in registers. Loaded through ctypes (_library.py, _native.py).
 *
 * Built if a C compiler is available (pyproject.toml: optional). Every function has a twin in _numba.py, and a test
 * that both agree. Functions are compiled for the instructions they need, and called only where chamfer_has_bf16()
 * reports that the processor has them.
 */
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,f16c")))
#define INLINE BF16 static inline __attribute__((always_inline))
#define MAX_BLOCK 16 /* document tokens whose products with 16 query tokens fill 16 of the 32 vector registers */

int chamfer_has_bf16(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}

/* n float16 values to bf16, n a multiple of 32, rounding to nearest. */
BF16 static void half_to_bf16(const uint16_t *in, uint32_t *out, int64_t n) {
    for (int64_t i = 0; i < n; i += 32) {
        __m512 low = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(in + i)));
        __m512 high = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(in + i + 16)));
        _mm512_storeu_si512(out + i / 2, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
}

/* Raises `best` to the largest products of 16 * `vectors` query tokens with `block` document tokens from `first`.
 *
 * Document tokens are rows of bf16 pairs; the last token repeats beyond the end, which does not change a maximum. The
 * query is stored pair by pair, `stride` words apart. Prefetches the same tokens of the next document from `ahead`. */
INLINE void best_of_block(const uint32_t *query, int64_t stride, const uint32_t *tokens, int64_t pairs, int64_t first,
                          int64_t count, const char *ahead, __m512 best[2], const int block, const int vectors) {
    const uint32_t *row[MAX_BLOCK];
    __m512 sum[MAX_BLOCK][2];
#pragma GCC unroll 16
    for (int t = 0; t < block; t++) {
        row[t] = tokens + (first + t < count ? first + t : count - 1) * pairs;
        sum[t][0] = sum[t][1] = _mm512_setzero_ps();
    }
    for (int64_t p = 0; p < pairs; p++) {
        if (p * 16 < block * pairs) _mm_prefetch(ahead + first * pairs * 4 + p * 64, _MM_HINT_T1);
        __m512bh a = (__m512bh)_mm512_loadu_si512(query + p * stride), b = a;
        if (vectors == 2) b = (__m512bh)_mm512_loadu_si512(query + p * stride + 16);
#pragma GCC unroll 16
        for (int t = 0; t < block; t++) {
            __m512bh d = (__m512bh)_mm512_set1_epi32((int)row[t][p]);
            sum[t][0] = _mm512_dpbf16_ps(sum[t][0], a, d);
            if (vectors == 2) sum[t][1] = _mm512_dpbf16_ps(sum[t][1], b, d);
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < block; t++) {
        best[0] = _mm512_max_ps(best[0], sum[t][0]);
        if (vectors == 2) best[1] = _mm512_max_ps(best[1], sum[t][1]);
    }
}

/* The same for 8 query tokens, in half-width registers, so that no lane is wasted. */
INLINE void best_of_block_8(const uint32_t *query, int64_t stride, const uint32_t *tokens, int64_t pairs, int64_t first,
                            int64_t count, const char *ahead, __m256 *best, const int block) {
    const uint32_t *row[MAX_BLOCK];
    __m256 sum[MAX_BLOCK];
#pragma GCC unroll 16
    for (int t = 0; t < block; t++) {
        row[t] = tokens + (first + t < count ? first + t : count - 1) * pairs;
        sum[t] = _mm256_setzero_ps();
    }
    for (int64_t p = 0; p < pairs; p++) {
        if (p * 16 < block * pairs) _mm_prefetch(ahead + first * pairs * 4 + p * 64, _MM_HINT_T1);
        __m256bh a = (__m256bh)_mm256_loadu_si256((const __m256i *)(query + p * stride));
#pragma GCC unroll 16
        for (int t = 0; t < block; t++)
            sum[t] = _mm256_dpbf16_ps(sum[t], a, (__m256bh)_mm256_set1_epi32((int)row[t][p]));
    }
#pragma GCC unroll 16
    for (int t = 0; t < block; t++) *best = _mm256_max_ps(*best, sum[t]);
}

/* The sum, over the first 32 query tokens at most, of their largest product with `count` > 0 document tokens. */
BF16 static float sum_of_best(const uint32_t *query, int64_t stride, int64_t n_query, const uint32_t *tokens,
                              int64_t pairs, int64_t count, const char *ahead) {
    __m512 best[2] = {_mm512_set1_ps(-3.4e38f), _mm512_set1_ps(-3.4e38f)};
    __m256 best_8 = _mm256_set1_ps(-3.4e38f);
    int64_t size = n_query > 16 ? 12 : 16, rest = n_query > 16 ? 4 : 8;
    for (int64_t first = 0; first < count;) {
        int wide = count - first > 8;
        if (n_query <= 8 && wide) best_of_block_8(query, stride, tokens, pairs, first, count, ahead, &best_8, 16);
        else if (n_query <= 8) best_of_block_8(query, stride, tokens, pairs, first, count, ahead, &best_8, 8);
        else if (n_query <= 16 && wide) best_of_block(query, stride, tokens, pairs, first, count, ahead, best, 16, 1);
        else if (n_query <= 16) best_of_block(query, stride, tokens, pairs, first, count, ahead, best, 8, 1);
        else if (wide) best_of_block(query, stride, tokens, pairs, first, count, ahead, best, 12, 2);
        else best_of_block(query, stride, tokens, pairs, first, count, ahead, best, 4, 2);
        first += wide ? size : rest;
    }
    if (n_query <= 8) return _mm512_reduce_add_ps(_mm512_zextps256_ps512(best_8));
    if (n_query <= 16) return _mm512_reduce_add_ps(best[0]);
    return _mm512_reduce_add_ps(best[0]) + _mm512_reduce_add_ps(best[1]);
}

/* MaxSim of one query with documents `rows`: out f32 [n_rows].
 *
 * query    bf16 pairs u32 [dim / 2, n_query rounded up to 32]; padding tokens are zero and add nothing
 * values   f16 [T, dim], dim a multiple of 32; offsets i64 [N + 1]
 * scratch  u32 [longest document * dim / 2]
 */
BF16 void chamfer_maxsim_half(const uint32_t *query, int64_t n_query, int64_t dim, const uint16_t *values,
                              const int64_t *offsets, const int64_t *rows, int64_t n_rows, uint32_t *scratch,
                              float *out) {
    int64_t stride = (n_query + 31) & ~31;
    for (int64_t i = 0; i < n_rows; i++) {
        int64_t start = offsets[rows[i]], count = offsets[rows[i] + 1] - start;
        float total = 0.0f;
        if (count > 0) {
            const char *ahead = (const char *)(values + offsets[rows[i + 1 < n_rows ? i + 1 : i]] * dim);
            half_to_bf16(values + start * dim, scratch, count * dim);
            for (int64_t q = 0; q < n_query; q += 32)
                total += sum_of_best(query + q, stride, n_query - q, scratch, dim / 2, count, ahead);
        }
        out[i] = total;
    }
}

/* Integer inner products of int8 rows with an int16 query, times the row's scale: out f32 [n]. dim: a multiple of 32. */
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
