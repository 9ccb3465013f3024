/* An inverted index of impacts: accumulates postings lists, selects the rows that may be among the best, and scores
 * them. sparse.c builds the search from these functions.
 *
 * Scores are summed in a fixed order without fused operations, so that the numba twins return the same bits.
 */
#ifndef CHAMFER_IMPACTS_H
#define CHAMFER_IMPACTS_H
#include <stdint.h>
#include <stdlib.h>

/* The postings of one segment; fields as in chamfer.indexing.kernels.impact_types.Impacts. */
typedef struct {
    int64_t n_documents, n_terms, saturating, wide_documents, wide_terms, float_values;
    const int64_t *offsets;
    const void *documents; /* u16, or i32 where wide_documents */
    const uint8_t *codes;
    const int64_t *row_offsets;
    const void *row_terms;  /* u16, or i32 where wide_terms */
    const void *row_values; /* u8, or f32 where float_values */
    const float *norms;
} Impacts;

/* One segment of a collection. */
typedef struct {
    Impacts index;
    const int32_t *local; /* [vocabulary + 1]: the segment's number of each term, -1 for terms it lacks */
    int64_t first_row;    /* the collection's number of the segment's first row */
} SegmentIndex;

/* As chamfer.indexing.kernels.impact_types.Queries. */
typedef struct {
    int64_t n, vocabulary;
    const int32_t *terms;
    const float *weights;
    const int64_t *offsets, *reads;
} Queries;

/* One query, the number of results and the allowed rows. */
typedef struct {
    int64_t vocabulary;
    const int32_t *terms;
    const float *weights;
    int64_t n_terms, k, rescored;
    const uint8_t *allowed;
    const int64_t *n_allowed;
} Request;

typedef struct {
    float score;
    int64_t row;
} Hit;

typedef struct {
    float weight;
    int64_t term;
} QueryTerm;

/* Working memory for segments of at most N rows and V terms: every array of rows holds N + 1040 of them, the arrays of
 * the best rows of a pruned search `rescored` more. `scores` and `query` are zero before and after a search. */
typedef struct {
    float *scores, *query, *uppers, *lowers;
    int32_t *rows;
    Hit *hits;
    QueryTerm *query_terms;
    float *best_sums;
    int64_t *best_rows;
} Scratch;

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#pragma GCC optimize("fp-contract=off")
#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define REL_SUM_ERROR 2e-5f /* bounds the relative error of a sum of float32 products in any order */

/* Sixteen unsigned 16-bit or (wide) 32-bit numbers from values[at]; those outside the mask are 0. */
WIDE static inline __m512i load_numbers(const void *values, int64_t at, int wide, __mmask16 mask) {
    if (wide) return _mm512_maskz_loadu_epi32(mask, (const int32_t *)values + at);
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)values + at));
}

/* The lanes of the first `left` of sixteen values. */
WIDE static inline __mmask16 first_lanes(int64_t left) { return left >= 16 ? 0xFFFF : (__mmask16)((1u << left) - 1); }

#define SCATTER(TYPE)                                                                                                  \
    do {                                                                                                               \
        const TYPE *row = (const TYPE *)documents + start;                                                             \
        int64_t i = 0;                                                                                                 \
        for (; i + 32 <= n; i += 32) {                                                                                 \
            float value[32];                                                                                           \
            _mm512_storeu_ps(value, gains(index, documents, start + i, 0xFFFF, weight));                               \
            _mm512_storeu_ps(value + 16, gains(index, documents, start + i + 16, 0xFFFF, weight));                     \
            _Pragma("GCC unroll 32") for (int j = 0; j < 32; j++) scores[row[i + j]] += value[j];                      \
        }                                                                                                              \
        for (; i < n; i += 16) {                                                                                       \
            float value[16];                                                                                           \
            _mm512_storeu_ps(value, gains(index, documents, start + i, first_lanes(n - i), weight));                   \
            for (int64_t j = 0; j < 16 && i + j < n; j++) scores[row[i + j]] += value[j];                              \
        }                                                                                                              \
    } while (0)

/* The contributions of sixteen postings: weight * code, or weight * tf / (tf + norm) where the index saturates. */
WIDE static inline __m512 gains(const Impacts *index, const void *documents, int64_t at, __mmask16 mask, float weight) {
    __m512 code = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, index->codes + at)));
    if (index->saturating) {
        __m512i rows = load_numbers(documents, at, (int)index->wide_documents, mask);
        __m512 norm = _mm512_mask_i32gather_ps(_mm512_set1_ps(1.0f), mask, rows, index->norms, 4);
        code = _mm512_div_ps(code, _mm512_add_ps(code, norm));
    }
    return _mm512_mul_ps(code, _mm512_set1_ps(weight));
}

/* Adds the contributions of a term's postings to scores f32 [N]. */
WIDE static void add_list(const Impacts *index, float *scores, int64_t term, float weight) {
    int64_t start = index->offsets[term], n = index->offsets[term + 1] - start;
    const void *documents = index->documents;
    if (index->wide_documents)
        SCATTER(int32_t);
    else
        SCATTER(uint16_t);
}

/* The k-th largest of n values >= 0, 1 <= k <= n: finds, bit by bit, the largest bit pattern that k of them reach. It
 * takes 31 passes but has no branch that depends on the values; a quickselect mispredicts every second branch. */
WIDE static float kth_largest(const float *values, int64_t n, int64_t k) {
    uint32_t kth = 0;
    for (uint32_t bit = 1u << 30; bit; bit >>= 1) {
        __m512i wanted = _mm512_set1_epi32((int)(kth | bit));
        int64_t reach = 0;
        for (int64_t i = 0; i < n; i += 16) {
            __m512i bits = _mm512_maskz_loadu_epi32(first_lanes(n - i), values + i);
            reach += __builtin_popcount(_mm512_cmp_epi32_mask(bits, wanted, _MM_CMPINT_NLT));
        }
        if (reach >= k) kth |= bit;
    }
    float value;
    __builtin_memcpy(&value, &kth, 4);
    return value;
}

/* Error bound on an accumulated score, and the filter: a row's score differs from its sum by at most `half_steps` steps
 * of the row's codes plus `relative` times the sum. */
typedef struct {
    const uint8_t *allowed; /* null: all rows */
    float half_steps, relative;
} ErrorBound;

/* The sums of sixteen rows: a row's score lies between sum - error and sum + error. */
typedef struct {
    __m512 sum, error;
    __mmask16 mask; /* rows that are allowed and share a term with the query */
} BoundedSums;

WIDE static inline BoundedSums sums_at(const Impacts *index, const float *scores, ErrorBound bound, int64_t d) {
    __mmask16 inside = first_lanes(index->n_documents - d);
    __m512 sum = _mm512_loadu_ps(scores + d);
    __mmask16 mask = _mm512_mask_cmp_ps_mask(inside, sum, _mm512_setzero_ps(), _CMP_GT_OQ);
    if (bound.allowed) mask &= _mm_test_epi8_mask(_mm_maskz_loadu_epi8(inside, bound.allowed + d), _mm_set1_epi8(-1));
    __m512 error = _mm512_setzero_ps();
    if (!index->saturating) {
        __m512 scale = _mm512_maskz_loadu_ps(inside, index->norms + d);
        sum = _mm512_mul_ps(sum, scale);
        error = _mm512_mul_ps(scale, _mm512_set1_ps(bound.half_steps));
    }
    error = _mm512_add_ps(error, _mm512_mul_ps(sum, _mm512_set1_ps(bound.relative)));
    return (BoundedSums){sum, error, mask};
}

/* A value no larger than the k-th largest lower bound of a score: the k-th largest of the maxima of groups of rows. It
 * takes one pass over the rows. 0 if there are fewer than k maxima. */
WIDE static float low_threshold(const Impacts *index, Scratch *scratch, ErrorBound bound, int64_t k) {
    int64_t n = index->n_documents, vectors = (n + 15) / 16, count = 0;
    int64_t group = n / (16 * k) < 1 ? 1 : n / (16 * k) > 64 ? 64 : n / (16 * k);
    for (int64_t v = 0; v < vectors; v += group) {
        __m512 largest = _mm512_setzero_ps();
        for (int64_t j = v; j < v + group && j < vectors; j++) {
            BoundedSums at = sums_at(index, scratch->scores, bound, j * 16);
            largest = _mm512_mask_max_ps(largest, at.mask, largest, _mm512_sub_ps(at.sum, at.error));
        }
        _mm512_storeu_ps(scratch->lowers + count, largest);
        count += 16;
    }
    return count < k ? 0.0f : kth_largest(scratch->lowers, count, k);
}

/* Selects the rows whose score may be among the k best and reach `floor`. Returns their number; puts the rows,
 * ascending, into `scratch->rows` and the upper bounds of their scores into `scratch->uppers`. Resets sums to zero. */
WIDE static int64_t select_rows(const Impacts *index, Scratch *scratch, ErrorBound bound, int64_t k, float floor) {
    float threshold = floor > 0 ? floor : low_threshold(index, scratch, bound, k);
    int64_t n_selected = 0, kept = 0;
    for (int64_t d = 0; d < index->n_documents; d += 16) {
        BoundedSums at = sums_at(index, scratch->scores, bound, d);
        _mm512_storeu_ps(scratch->scores + d, _mm512_setzero_ps());
        __m512 upper = _mm512_add_ps(at.sum, at.error);
        __mmask16 mask = _mm512_mask_cmp_ps_mask(at.mask, upper, _mm512_set1_ps(threshold), _CMP_GE_OQ);
        if (!mask) continue;
        __m512i rows = _mm512_add_epi32(_mm512_set1_epi32((int)d),
                                        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
        _mm512_storeu_si512(scratch->rows + n_selected, _mm512_maskz_compress_epi32(mask, rows));
        _mm512_storeu_ps(scratch->uppers + n_selected, _mm512_maskz_compress_ps(mask, upper));
        __m512 lower = _mm512_max_ps(_mm512_sub_ps(at.sum, at.error), _mm512_setzero_ps());
        _mm512_storeu_ps(scratch->lowers + n_selected, _mm512_maskz_compress_ps(mask, lower));
        n_selected += __builtin_popcount(mask);
    }
    if (n_selected <= k) return n_selected;
    float kth = kth_largest(scratch->lowers, n_selected, k);
    if (kth > threshold) threshold = kth;
    for (int64_t i = 0; i < n_selected; i++) {
        if (scratch->uppers[i] < threshold) continue;
        scratch->uppers[kept] = scratch->uppers[i];
        scratch->rows[kept++] = scratch->rows[i];
    }
    return kept;
}

/* The score of one row, from the row's own postings in sixteen lanes, which are then summed in a fixed order. */
WIDE static float score_row(const Impacts *index, const float *query, int64_t row) {
    int64_t start = index->row_offsets[row], stop = index->row_offsets[row + 1];
    __m512 lanes = _mm512_setzero_ps(), norm = _mm512_set1_ps(index->norms ? index->norms[row] : 1.0f);
    for (int64_t i = start; i < stop; i += 16) {
        __mmask16 mask = first_lanes(stop - i);
        __m512i terms = load_numbers(index->row_terms, i, (int)index->wide_terms, mask);
        __m512 weights = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, terms, query, 4);
        __m512 values;
        if (index->float_values)
            values = _mm512_maskz_loadu_ps(mask, (const float *)index->row_values + i);
        else
            values = _mm512_cvtepi32_ps(
                _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, (const uint8_t *)index->row_values + i)));
        if (index->saturating) values = _mm512_maskz_div_ps(mask, values, _mm512_add_ps(values, norm));
        lanes = _mm512_add_ps(lanes, _mm512_mul_ps(weights, values));
    }
    float lane[16];
    _mm512_storeu_ps(lane, lanes);
    for (int width = 8; width; width /= 2)
        for (int j = 0; j < width; j++) lane[j] += lane[j + width];
    return index->saturating || index->float_values ? lane[0] : lane[0] * index->norms[row];
}

/* Order of qsort: higher scores first, ties by smaller row. */
static int by_score_descending(const void *a, const void *b) {
    const Hit *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? 1 : -1;
    return x->row < y->row ? -1 : x->row > y->row;
}

#define AHEAD 4 /* rows between the one being scored and the one whose postings are prefetched */

/* Rows to score are scattered in memory, so the hardware prefetcher cannot predict them. */
static inline void prefetch_row(const Impacts *index, const int32_t *rows, int64_t i, int64_t n) {
    if (i + 2 * AHEAD < n) {
        __builtin_prefetch(index->row_offsets + rows[i + 2 * AHEAD]);
        __builtin_prefetch(index->norms + rows[i + 2 * AHEAD]);
    }
    if (i + AHEAD >= n) return;
    int64_t row = rows[i + AHEAD], start = index->row_offsets[row], stop = index->row_offsets[row + 1];
    const char *terms = index->row_terms, *values = index->row_values;
    int64_t term_bytes = index->wide_terms ? 4 : 2, value_bytes = index->float_values ? 4 : 1;
    for (int64_t at = start * term_bytes; at < stop * term_bytes; at += 64) __builtin_prefetch(terms + at);
    for (int64_t at = start * value_bytes; at < stop * value_bytes; at += 64) __builtin_prefetch(values + at);
}

/* Scores n rows (the first n where `rows` is null), those that are allowed. Puts the k best with positive scores into
 * `hits`, best first, ties by smaller row, and returns their number. */
static int64_t keep_best(const Impacts *index, const float *query, const int32_t *rows, const uint8_t *allowed,
                         int64_t n, int64_t k, Hit *hits) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t row = rows ? rows[i] : i;
        if (allowed && !allowed[row]) continue;
        if (rows) prefetch_row(index, rows, i, n);
        float score = score_row(index, query, row);
        if (score > 0) hits[count++] = (Hit){score, row};
    }
    qsort(hits, (size_t)count, sizeof(Hit), by_score_descending);
    return count < k ? count : k;
}

/* Merges a segment's hits into the `count` best of the segments before it, whose rows are smaller, and keeps k. Returns
 * the new count. */
static int64_t merge(const Hit *hits, int64_t n, int64_t first_row, int64_t k, int64_t *rows, float *scores,
                     int64_t count) {
    int64_t old = 0, new = 0;
    while (old + new < k && (old < count || new < n)) {
        if (new == n || (old < count && scores[old] >= hits[new].score)) old++;
        else new++;
    }
    count = old + new;
    for (int64_t at = count; new; ) {
        int from_old = old && scores[old - 1] < hits[new - 1].score;
        scores[--at] = from_old ? scores[--old] : hits[--new].score;
        rows[at] = from_old ? rows[old] : hits[new].row + first_row;
    }
    return count;
}

#endif
#endif
