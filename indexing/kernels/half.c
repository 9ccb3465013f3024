/* Inner products of float32 queries with float16 rows, to select rows that are then scored again (see dot.py).
 *
 * Rows are converted in registers, four at a time, and multiplied with four queries at a time; numpy would convert them
 * at a tenth of the memory bandwidth. Used if the processor has AVX-512.
 */
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl,f16c")))
#define ROWS 4    /* ROWS * QUERIES sums and their factors fill the vector registers */
#define QUERIES 4

/* Adds to sum[row][query] the products of sixteen dimensions from d, of which `mask` selects those that exist. */
WIDE static inline __attribute__((always_inline)) void add_products(const uint16_t *const *rows, const float *queries,
                                                                    int64_t dim, int64_t d, __mmask16 mask,
                                                                    __m512 sum[ROWS][QUERIES], const int n_queries) {
    __m512 value[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) value[r] = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, rows[r] + d));
#pragma GCC unroll 4
    for (int q = 0; q < n_queries; q++) {
        __m512 query = _mm512_maskz_loadu_ps(mask, queries + q * dim + d);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) sum[r][q] = _mm512_fmadd_ps(value[r], query, sum[r][q]);
    }
}

/* out[q * stride + r] = <queries[q], rows[r]> for the first n_rows of ROWS rows. */
WIDE static inline __attribute__((always_inline)) void multiply(const uint16_t *const *rows, int64_t n_rows,
                                                                const float *queries, int64_t dim, float *out,
                                                                int64_t stride, const int n_queries) {
    __m512 sum[ROWS][QUERIES];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int q = 0; q < n_queries; q++) sum[r][q] = _mm512_setzero_ps();
    int64_t d = 0;
    for (; d + 16 <= dim; d += 16) add_products(rows, queries, dim, d, 0xFFFF, sum, n_queries);
    if (d < dim) add_products(rows, queries, dim, d, (__mmask16)((1u << (dim - d)) - 1), sum, n_queries);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int q = 0; q < n_queries; q++)
            if (r < n_rows) out[q * stride + r] = _mm512_reduce_add_ps(sum[r][q]);
}

/* Inner products f32 [n_queries, n] of queries f32 [n_queries, dim] with rows f16 [n, dim]. */
WIDE void chamfer_products_half(const uint16_t *values, const float *queries, int64_t n_queries, int64_t n, int64_t dim,
                                float *out) {
    for (int64_t first = 0; first < n; first += ROWS) {
        const uint16_t *rows[ROWS];
        for (int64_t r = 0; r < ROWS; r++) rows[r] = values + (first + r < n ? first + r : n - 1) * dim;
        for (int64_t q = 0; q < n_queries; q += QUERIES) {
            const float *some = queries + q * dim;
            float *to = out + q * n + first;
            int64_t left = n_queries - q;
            if (left >= 4) multiply(rows, n - first, some, dim, to, n, 4);
            else if (left == 3) multiply(rows, n - first, some, dim, to, n, 3);
            else if (left == 2) multiply(rows, n - first, some, dim, to, n, 2);
            else multiply(rows, n - first, some, dim, to, n, 1);
        }
    }
}
#endif
