/* An inverted index of impacts: adding up lists, finding the rows that matter, scoring them; sparse.c searches by it.
 *
 * Scores are added up in a fixed order without fused operations, so that the compiled twins return the same bits.
 */
#ifndef CHAMFER_IMPACTS_H
#define CHAMFER_IMPACTS_H
#include <stdint.h>
#include <stdlib.h>

/* One segment's index; fields as in chamfer.indexing.kernels.impacts.Impacts. */
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

/* A segment among others. */
typedef struct {
    Impacts index;
    const int32_t *local; /* [vocabulary + 1]: its place of each term that queries name, -1 where it has none */
    int64_t first_row;
} Part;

/* As chamfer.indexing.kernels.impacts.Asked. */
typedef struct {
    int64_t n, vocabulary;
    const int32_t *terms;
    const float *weights;
    const int64_t *offsets, *reads;
} Queries;

/* One query and what is wanted for it. */
typedef struct {
    int64_t vocabulary;
    const int32_t *terms;
    const float *weights;
    int64_t n_terms, k, rescored;
    const uint8_t *allowed;
    const int64_t *n_allowed;
} Wanted;

typedef struct {
    float score;
    int64_t row;
} Hit;

typedef struct {
    float weight;
    int64_t term;
} Asked;

/* scores f32 [N + 16] and query f32 [V], zero before and after a search; room for N + 1040 rows and V terms
 * (the largest N and V of the parts); the best of a pruned search so far, sums and rows, have room for that many rows
 * more than it scores. */
typedef struct {
    float *scores, *query, *uppers, *lowers;
    int32_t *rows;
    Hit *hits;
    Asked *asked;
    float *best_sums;
    int64_t *best_rows;
} Scratch;

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#pragma GCC optimize("fp-contract=off")
#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define SLOP 2e-5f /* relative error of a sum of float32 products in any order, generously */

WIDE static inline __m512i sixteen(const void *values, int64_t at, int wide, __mmask16 mask) {
    if (wide) return _mm512_maskz_loadu_epi32(mask, (const int32_t *)values + at);
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)values + at));
}

WIDE static inline __mmask16 first(int64_t left) { return left >= 16 ? 0xFFFF : (__mmask16)((1u << left) - 1); }

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
            _mm512_storeu_ps(value, gains(index, documents, start + i, first(n - i), weight));                         \
            for (int64_t j = 0; j < 16 && i + j < n; j++) scores[row[i + j]] += value[j];                              \
        }                                                                                                              \
    } while (0)

/* What sixteen postings give: weight * code, or weight * tf / (tf + norm). */
WIDE static inline __m512 gains(const Impacts *index, const void *documents, int64_t at, __mmask16 mask, float weight) {
    __m512 code = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, index->codes + at)));
    if (index->saturating) {
        __m512i rows = sixteen(documents, at, (int)index->wide_documents, mask);
        __m512 norm = _mm512_mask_i32gather_ps(_mm512_set1_ps(1.0f), mask, rows, index->norms, 4);
        code = _mm512_div_ps(code, _mm512_add_ps(code, norm));
    }
    return _mm512_mul_ps(code, _mm512_set1_ps(weight));
}

/* Adds a term's list to scores f32 [N]. */
WIDE static void add_list(const Impacts *index, float *scores, int64_t term, float weight) {
    int64_t start = index->offsets[term], n = index->offsets[term + 1] - start;
    const void *documents = index->documents;
    if (index->wide_documents)
        SCATTER(int32_t);
    else
        SCATTER(uint16_t);
}

/* The k-th largest of n values >= 0, 1 <= k <= n: the largest bit pattern that k of them reach, bit by bit. Thirty
 * passes without a branch that depends on the values, where a quickselect would mispredict at every other one. */
WIDE static float kth_largest(const float *values, int64_t n, int64_t k) {
    uint32_t kth = 0;
    for (uint32_t bit = 1u << 30; bit; bit >>= 1) {
        __m512i wanted = _mm512_set1_epi32((int)(kth | bit));
        int64_t reach = 0;
        for (int64_t i = 0; i < n; i += 16) {
            __m512i bits = _mm512_maskz_loadu_epi32(first(n - i), values + i);
            reach += __builtin_popcount(_mm512_cmp_epi32_mask(bits, wanted, _MM_CMPINT_NLT));
        }
        if (reach >= k) kth |= bit;
    }
    float out;
    __builtin_memcpy(&out, &kth, 4);
    return out;
}

/* How far a row's score may lie from its sum: half_steps of its codes and a share of the sum; rows that count. */
typedef struct {
    const uint8_t *allowed; /* null: all */
    float half_steps, slop;
} Look;

/* Sixteen rows' sums with their error: a row's score lies between sum - error and sum + error. */
typedef struct {
    __m512 sum, error;
    __mmask16 mask; /* rows that are allowed and were reached */
} Sixteen;

WIDE static inline Sixteen sums_at(const Impacts *index, const float *scores, Look look, int64_t d) {
    __mmask16 inside = first(index->n_documents - d);
    __m512 sum = _mm512_loadu_ps(scores + d);
    __mmask16 mask = _mm512_mask_cmp_ps_mask(inside, sum, _mm512_setzero_ps(), _CMP_GT_OQ);
    if (look.allowed) mask &= _mm_test_epi8_mask(_mm_maskz_loadu_epi8(inside, look.allowed + d), _mm_set1_epi8(-1));
    __m512 error = _mm512_setzero_ps();
    if (!index->saturating) {
        __m512 scale = _mm512_maskz_loadu_ps(inside, index->norms + d);
        sum = _mm512_mul_ps(sum, scale);
        error = _mm512_mul_ps(scale, _mm512_set1_ps(look.half_steps));
    }
    error = _mm512_add_ps(error, _mm512_mul_ps(sum, _mm512_set1_ps(look.slop)));
    return (Sixteen){sum, error, mask};
}

/* A value that the k-th largest lower bound of a score is not below: the k-th largest of the maxima of groups of rows,
 * which are few, so that it costs one pass. 0 where there are fewer than k. */
WIDE static float low_threshold(const Impacts *index, Scratch *scratch, Look look, int64_t k) {
    int64_t n = index->n_documents, vectors = (n + 15) / 16, count = 0;
    int64_t group = n / (16 * k) < 1 ? 1 : n / (16 * k) > 64 ? 64 : n / (16 * k);
    for (int64_t v = 0; v < vectors; v += group) {
        __m512 largest = _mm512_setzero_ps();
        for (int64_t j = v; j < v + group && j < vectors; j++) {
            Sixteen at = sums_at(index, scratch->scores, look, j * 16);
            largest = _mm512_mask_max_ps(largest, at.mask, largest, _mm512_sub_ps(at.sum, at.error));
        }
        _mm512_storeu_ps(scratch->lowers + count, largest);
        count += 16;
    }
    return count < k ? 0.0f : kth_largest(scratch->lowers, count, k);
}

/* Rows whose score could be among the k best and reach `floor`, ascending: their number; `scratch->rows` holds them,
 * `scratch->uppers` their upper bounds. Sums are set to zero. */
WIDE static int64_t select_rows(const Impacts *index, Scratch *scratch, Look look, int64_t k, float floor) {
    float threshold = floor > 0 ? floor : low_threshold(index, scratch, look, k);
    int64_t found = 0, kept = 0;
    for (int64_t d = 0; d < index->n_documents; d += 16) {
        Sixteen at = sums_at(index, scratch->scores, look, d);
        _mm512_storeu_ps(scratch->scores + d, _mm512_setzero_ps());
        __m512 upper = _mm512_add_ps(at.sum, at.error);
        __mmask16 mask = _mm512_mask_cmp_ps_mask(at.mask, upper, _mm512_set1_ps(threshold), _CMP_GE_OQ);
        if (!mask) continue;
        __m512i rows = _mm512_add_epi32(_mm512_set1_epi32((int)d),
                                        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
        _mm512_storeu_si512(scratch->rows + found, _mm512_maskz_compress_epi32(mask, rows));
        _mm512_storeu_ps(scratch->uppers + found, _mm512_maskz_compress_ps(mask, upper));
        __m512 lower = _mm512_max_ps(_mm512_sub_ps(at.sum, at.error), _mm512_setzero_ps());
        _mm512_storeu_ps(scratch->lowers + found, _mm512_maskz_compress_ps(mask, lower));
        found += __builtin_popcount(mask);
    }
    if (found <= k) return found;
    float kth = kth_largest(scratch->lowers, found, k);
    if (kth > threshold) threshold = kth;
    for (int64_t i = 0; i < found; i++) {
        if (scratch->uppers[i] < threshold) continue;
        scratch->uppers[kept] = scratch->uppers[i];
        scratch->rows[kept++] = scratch->rows[i];
    }
    return kept;
}

/* The score of one row from its own terms, in sixteen lanes that are added in a fixed order. */
WIDE static float score_row(const Impacts *index, const float *query, int64_t row) {
    int64_t start = index->row_offsets[row], stop = index->row_offsets[row + 1];
    __m512 lanes = _mm512_setzero_ps(), norm = _mm512_set1_ps(index->norms ? index->norms[row] : 1.0f);
    for (int64_t i = start; i < stop; i += 16) {
        __mmask16 mask = first(stop - i);
        __m512i terms = sixteen(index->row_terms, i, (int)index->wide_terms, mask);
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

static int worse_last(const void *a, const void *b) {
    const Hit *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? 1 : -1;
    return x->row < y->row ? -1 : x->row > y->row;
}

#define AHEAD 4 /* rows between the one that is scored and the one whose terms are fetched */

/* Rows that are scored lie anywhere: the processor is told before. */
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

/* Scores n rows; puts the k best of those with positive scores into `hits`, best first, ties by smaller row. */
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
    qsort(hits, (size_t)count, sizeof(Hit), worse_last);
    return count < k ? count : k;
}

/* Merges a part's hits into the k best so far, whose rows are smaller; returns how many there are then. */
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
