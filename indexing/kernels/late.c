/* Late interaction over codes: centroid scores, which choose candidates, and decoding of residuals. The twins are in
 * _numba_late.py.
 *
 * The scan adds integers and returns the same bits as its twin. Decoding fuses a multiplication and an addition, so that
 * a value may differ from the twin's by one float16 step. Called only where chamfer_has_bf16() is true, which includes AVX512-VNNI.
 */
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl,f16c")))

/* Adds to out i32 [n]: the sum, over 32 query tokens, of the largest table entry among the document's centroids.
 *
 * table u8 [K, 32] (128 KiB for 4,096 centroids, which the second-level cache holds); ids u16 [T]; offsets i64 [n + 1].
 * Four running maxima hide the latency of the loads. A document without tokens adds 0.
 */
WIDE void chamfer_scan_centroids(const uint8_t *table, const uint16_t *ids, const int64_t *offsets, int64_t n,
                                 int32_t *out) {
    for (int64_t row = 0; row < n; row++) {
        const uint16_t *id = ids + offsets[row], *end = ids + offsets[row + 1];
        __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
        for (; id + 4 <= end; id += 4) {
            a = _mm256_max_epu8(a, _mm256_loadu_si256((const __m256i *)(table + 32 * (int64_t)id[0])));
            b = _mm256_max_epu8(b, _mm256_loadu_si256((const __m256i *)(table + 32 * (int64_t)id[1])));
            c = _mm256_max_epu8(c, _mm256_loadu_si256((const __m256i *)(table + 32 * (int64_t)id[2])));
            d = _mm256_max_epu8(d, _mm256_loadu_si256((const __m256i *)(table + 32 * (int64_t)id[3])));
        }
        for (; id < end; id++)
            a = _mm256_max_epu8(a, _mm256_loadu_si256((const __m256i *)(table + 32 * (int64_t)id[0])));
        a = _mm256_max_epu8(_mm256_max_epu8(a, b), _mm256_max_epu8(c, d));
        __m256i sums = _mm256_sad_epu8(a, _mm256_setzero_si256());
        out[row] += (int32_t)(_mm256_extract_epi64(sums, 0) + _mm256_extract_epi64(sums, 1) +
                              _mm256_extract_epi64(sums, 2) + _mm256_extract_epi64(sums, 3));
    }
}

/* Decodes documents `rows`, concatenated, to f16 [., dim]: scale * (base[id] + step * code), where base is the
 * centroid minus the middle of the codes times the step.
 *
 * codes u8 [T, dim bits / 8]: byte j holds dimensions j, j + dim bits / 8, ... from its lowest bits up; codes of 3 bits
 * store the lower 2 in that way, followed by a bitmap of the third bits. The bytes before the bitmap are a multiple of
 * 16. ids u16 [T], or NULL if there is one base. scales f16 [T].
 */
WIDE void chamfer_decode(const uint8_t *codes, const uint16_t *ids, const uint16_t *scales, const float *base,
                         const float *step, int64_t dim, int64_t bits, const int64_t *offsets, const int64_t *rows,
                         int64_t n_rows, uint16_t *out) {
    int64_t bytes = dim * bits / 8, whole = bits == 3 ? 2 : bits, width = dim * whole / 8;
    __m512i mask = _mm512_set1_epi32((1 << whole) - 1), third = _mm512_set1_epi32(4);
    for (int64_t i = 0; i < n_rows; i++) {
        for (int64_t t = offsets[rows[i]]; t < offsets[rows[i] + 1]; t++, out += dim) {
            __m512 scale = _mm512_set1_ps(_cvtsh_ss(scales[t]));
            const float *from = base + (ids ? dim * (int64_t)ids[t] : 0);
            const uint8_t *token = codes + t * bytes;
            for (int64_t j = 0; j < width; j += 16) {
                __m512i packed = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(token + j)));
                for (int64_t shift = 0, d = j; shift < 8; shift += whole, d += width) {
                    __m512i code = _mm512_and_si512(_mm512_srli_epi32(packed, (unsigned)shift), mask);
                    if (bits == 3) {
                        __mmask16 set;
                        memcpy(&set, token + width + d / 8, sizeof set);
                        code = _mm512_mask_or_epi32(code, set, code, third);
                    }
                    __m512 value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(code), _mm512_loadu_ps(step + d),
                                                   _mm512_loadu_ps(from + d));
                    value = _mm512_mul_ps(value, scale);
                    _mm256_storeu_si256((__m256i *)(out + d), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
                }
            }
        }
    }
}

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni,f16c")))
#define TOKENS 12 /* document tokens whose products with 16 query tokens are summed in registers at a time */

/* Unpacks the codes of `count` tokens to one byte per dimension. A token's bytes before the bitmap are a multiple of 32. */
VNNI static void unpack(const uint8_t *codes, int64_t count, int64_t dim, int64_t bits, uint8_t *out) {
    int64_t whole = bits == 3 ? 2 : bits, width = dim * whole / 8;
    __m256i mask = _mm256_set1_epi8((char)((1 << whole) - 1));
    for (int64_t t = 0; t < count; t++, codes += dim * bits / 8)
        for (int64_t shift = 0, d = 0; shift < 8; shift += whole)
            for (int64_t j = 0; j < width; j += 32, d += 32, out += 32) {
                __m256i bytes = _mm256_loadu_si256((const __m256i *)(codes + j));
                bytes = _mm256_and_si256(_mm256_srli_epi16(bytes, (int)shift), mask);
                if (bits == 3) {
                    __mmask32 set;
                    memcpy(&set, codes + width + d / 8, sizeof set);
                    bytes = _mm256_or_si256(bytes, _mm256_maskz_set1_epi8(set, 4));
                }
                _mm256_storeu_si256((__m256i *)out, bytes);
            }
}

/* MaxSim of one query with coded documents `rows`, without decoding: out f32 [n_rows].
 *
 * A product is scale * (table[id] + unit * integer product of query bytes and codes), see codes.maxsim_codes.
 * query i8 [groups, dim / 4, 16 tokens, 4]; units f32 [groups 16]; table f32 [K, groups 16]; scratch u8 [longest dim].
 * Padding columns beyond the query's tokens are 0 and add nothing.
 */
VNNI void chamfer_maxsim_codes(const int8_t *query, const float *units, const float *table, int64_t groups,
                               const uint8_t *codes, const uint16_t *ids, const uint16_t *scales, int64_t dim,
                               int64_t bits, const int64_t *offsets, const int64_t *rows, int64_t n_rows,
                               uint8_t *scratch, float *out) {
    int64_t width = dim * bits / 8;
    for (int64_t i = 0; i < n_rows; i++) {
        int64_t start = offsets[rows[i]], count = offsets[rows[i] + 1] - start;
        const uint8_t *bytes = codes + start * width;
        const char *next = (const char *)(codes + (i + 1 < n_rows ? offsets[rows[i + 1]] : start) * width);
        float total = 0.0f;
        if (bits < 8) {
            unpack(bytes, count, dim, bits, scratch);
            bytes = scratch;
        }
        for (int64_t g = 0; g < groups && count > 0; g++) {
            __m512 best = _mm512_set1_ps(-3.4e38f), unit = _mm512_loadu_ps(units + 16 * g);
            for (int64_t first = 0; first < count; first += TOKENS) {
                if (g == 0) /* rows are scattered in memory: prefetch the next one */
                    for (int64_t at = first * width; at < (first + TOKENS) * width; at += 64)
                        _mm_prefetch(next + at, _MM_HINT_T1);
                const int32_t *token[TOKENS];
                __m512i sum[TOKENS];
#pragma GCC unroll 12
                for (int t = 0; t < TOKENS; t++) { /* the last token repeats */
                    token[t] = (const int32_t *)(bytes + (first + t < count ? first + t : count - 1) * dim);
                    sum[t] = _mm512_setzero_si512();
                }
                for (int64_t p = 0; p < dim / 4; p++) {
                    __m512i q = _mm512_loadu_si512(query + 64 * (g * (dim / 4) + p));
#pragma GCC unroll 12
                    for (int t = 0; t < TOKENS; t++)
                        sum[t] = _mm512_dpbusd_epi32(sum[t], _mm512_set1_epi32(token[t][p]), q);
                }
#pragma GCC unroll 12
                for (int t = 0; t < TOKENS; t++) {
                    int64_t at = start + (first + t < count ? first + t : count - 1);
                    const float *entry = table + 16 * (g + groups * (ids ? (int64_t)ids[at] : 0));
                    __m512 value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[t]), unit, _mm512_loadu_ps(entry));
                    best = _mm512_max_ps(best, _mm512_mul_ps(value, _mm512_set1_ps(_cvtsh_ss(scales[at]))));
                }
            }
            total += _mm512_reduce_add_ps(best);
        }
        out[i] = total;
    }
}
#endif
