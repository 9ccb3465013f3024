/* Exact top-k search of an inverted index of impacts; the twin and the definition are in _numba_impacts.py.
 *
 * Built and loaded like fast.c, used where the processor has AVX-512. Scores are added up in a fixed order without
 * fused operations, so that both twins return the same bits.
 */
#include <stdint.h>
#include <stdlib.h>

/* One segment's index; fields as in indexing.kernels.impacts.Impacts. */
typedef struct {
    int64_t n_documents, n_terms, saturating, wide_documents, wide_terms, float_values;
    const int64_t *offsets;
    const void *documents; /* u16, or i32 where wide_documents */
    const uint8_t *codes;
    const float *largest;
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

typedef struct {
    float score;
    int64_t row;
} Hit;

typedef struct {
    float bound, weight;
    int64_t term;
} Asked;

/* scores f32 [N + 16] and query f32 [V], zero before and after a search; room for N + 1040 rows and V terms
 * (the largest N and V of the parts). */
typedef struct {
    float *scores, *query, *uppers, *lowers;
    int32_t *rows;
    Hit *hits;
    Asked *asked;
} Scratch;

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#pragma GCC optimize("fp-contract=off")
#define WIDE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define SLOP 2e-5f /* relative error of a sum of float32 products in any order, generously */

int chamfer_has_avx512(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

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

/* Sixteen rows' sums with their error: a row's score lies between sum - error and sum + error + unread. */
typedef struct {
    __m512 sum, error;
    __mmask16 mask; /* rows that are allowed and were reached */
} Sixteen;

WIDE static inline Sixteen sums_at(const Impacts *index, const float *scores, const uint8_t *allowed, float half_steps,
                                   int64_t d) {
    __mmask16 inside = first(index->n_documents - d);
    __m512 sum = _mm512_loadu_ps(scores + d);
    __mmask16 mask = _mm512_mask_cmp_ps_mask(inside, sum, _mm512_setzero_ps(), _CMP_GT_OQ);
    if (allowed) mask &= _mm_test_epi8_mask(_mm_maskz_loadu_epi8(inside, allowed + d), _mm_set1_epi8(-1));
    __m512 error = _mm512_setzero_ps();
    if (!index->saturating) {
        __m512 scale = _mm512_maskz_loadu_ps(inside, index->norms + d);
        sum = _mm512_mul_ps(sum, scale);
        error = _mm512_mul_ps(scale, _mm512_set1_ps(half_steps));
    }
    error = _mm512_add_ps(error, _mm512_mul_ps(sum, _mm512_set1_ps(SLOP)));
    return (Sixteen){sum, error, mask};
}

/* A value that the k-th largest lower bound of a score is not below: the k-th largest of the maxima of groups of rows,
 * which are few, so that it costs one pass. 0 where there are fewer than k. */
WIDE static float low_threshold(const Impacts *index, Scratch *scratch, const uint8_t *allowed, int64_t k,
                                float half_steps) {
    int64_t n = index->n_documents, vectors = (n + 15) / 16, count = 0;
    int64_t group = n / (16 * k) < 1 ? 1 : n / (16 * k) > 64 ? 64 : n / (16 * k);
    for (int64_t v = 0; v < vectors; v += group) {
        __m512 largest = _mm512_setzero_ps();
        for (int64_t j = v; j < v + group && j < vectors; j++) {
            Sixteen at = sums_at(index, scratch->scores, allowed, half_steps, j * 16);
            largest = _mm512_mask_max_ps(largest, at.mask, largest, _mm512_sub_ps(at.sum, at.error));
        }
        _mm512_storeu_ps(scratch->lowers + count, largest);
        count += 16;
    }
    return count < k ? 0.0f : kth_largest(scratch->lowers, count, k);
}

/* Rows whose score could be among the k best, ascending: their number; `scratch->rows` holds them. Sums are set to
 * zero where `clear`. `unread` is what lists that were not added yet could give a row at most. */
WIDE static int64_t select_rows(const Impacts *index, Scratch *scratch, const uint8_t *allowed, int64_t k,
                                float half_steps, float unread, float floor, int clear) {
    float threshold = low_threshold(index, scratch, allowed, k, half_steps);
    if (threshold < floor) threshold = floor;
    if (2 * unread > threshold) return index->n_documents; /* as good as all: not worth the look */
    int64_t found = 0, kept = 0;
    for (int64_t d = 0; d < index->n_documents; d += 16) {
        Sixteen at = sums_at(index, scratch->scores, allowed, half_steps, d);
        if (clear) _mm512_storeu_ps(scratch->scores + d, _mm512_setzero_ps());
        __m512 upper = _mm512_add_ps(_mm512_add_ps(at.sum, at.error), _mm512_set1_ps(unread));
        __mmask16 mask = _mm512_mask_cmp_ps_mask(at.mask, upper, _mm512_set1_ps(threshold), _CMP_GE_OQ);
        if (!mask) continue;
        __m512i rows = _mm512_add_epi32(_mm512_set1_epi32((int)d),
                                        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
        _mm512_storeu_si512(scratch->rows + found, _mm512_maskz_compress_epi32(mask, rows));
        _mm512_storeu_ps(scratch->uppers + found, _mm512_maskz_compress_ps(mask, upper));
        _mm512_storeu_ps(scratch->lowers + found, _mm512_maskz_compress_ps(mask, _mm512_max_ps(_mm512_sub_ps(at.sum, at.error), _mm512_setzero_ps())));
        found += __builtin_popcount(mask);
    }
    if (found <= k) return found;
    float kth = kth_largest(scratch->lowers, found, k);
    if (kth > threshold) threshold = kth;
    for (int64_t i = 0; i < found; i++)
        if (scratch->uppers[i] >= threshold) scratch->rows[kept++] = scratch->rows[i];
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

/* Scores n rows; puts the k best of those with positive scores into `hits`, best first, ties by smaller row. */
static int64_t keep_best(const Impacts *index, const float *query, const int32_t *rows, const uint8_t *allowed, int64_t n,
                         int64_t k, Hit *hits) {
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t row = rows ? rows[i] : i;
        if (allowed && !allowed[row]) continue;
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

/* What a posting, a document passed over in selection and a term of a scored row cost, in nanoseconds on a Zen 4 core:
 * what the choice between the three ways to search goes by (the results do not depend on it). */
#define POSTING_NS 0.7
#define SATURATED_NS 1.2
#define PASSED_NS 0.15
#define ROW_TERM_NS 0.9
#define ROW_NS 60.0

static int largest_first(const void *a, const void *b) {
    const Asked *x = a, *y = b;
    if (x->bound != y->bound) return x->bound < y->bound ? 1 : -1;
    return x->term < y->term ? -1 : x->term > y->term;
}

static double row_cost(const Impacts *index) {
    double n = (double)(index->n_documents ? index->n_documents : 1);
    return ROW_NS + ROW_TERM_NS * (double)index->row_offsets[index->n_documents] / n;
}

/* Adds up lists, those that can give most first; stops where few enough rows are left that the lists not yet read
 * could lift among the k best. Returns the number of rows to score. */
static int64_t gather_rows(const Impacts *index, Scratch *scratch, const Asked *asked, int64_t n, const uint8_t *allowed,
                           int64_t k, float floor, float grant) {
    double posting = index->saturating ? SATURATED_NS : POSTING_NS, left = 0;
    double rest = 0, next;
    float weights = 0;
    for (int64_t i = 0; i < n; i++) {
        rest += asked[i].bound;
        weights += asked[i].weight;
        left += posting * (double)(index->offsets[asked[i].term + 1] - index->offsets[asked[i].term]);
    }
    float half_steps = index->float_values ? 0.5f * weights : 0.0f;
    next = rest / 2;
    for (int64_t i = 0; i < n; i++) {
        add_list(index, scratch->scores, asked[i].term, asked[i].weight);
        rest -= asked[i].bound;
        left -= posting * (double)(index->offsets[asked[i].term + 1] - index->offsets[asked[i].term]);
        if (rest > next || left < 4 * PASSED_NS * (double)index->n_documents) continue;
        next = rest / 2;
        float unread = (float)(rest * (1 + SLOP)) * grant;
        int64_t found = select_rows(index, scratch, allowed, k, half_steps, unread, floor, 0);
        if ((double)found * row_cost(index) < left) {
            __builtin_memset(scratch->scores, 0, (size_t)index->n_documents * sizeof(float));
            return found;
        }
    }
    return select_rows(index, scratch, allowed, k, half_steps, 0.0f, floor, 1);
}

/* The k best of one part's rows, into scratch->hits: their number. `n_allowed` counts the ones of `allowed`. */
static int64_t search_part(const Part *part, Scratch *scratch, int64_t vocabulary, const int32_t *terms,
                           const float *weights, int64_t n_terms, int64_t k, const uint8_t *allowed, int64_t n_allowed,
                           float floor, float grant) {
    const Impacts *index = &part->index;
    double lists = PASSED_NS * (double)index->n_documents, posting = index->saturating ? SATURATED_NS : POSTING_NS;
    Asked *asked = scratch->asked;
    int64_t n = 0;
    for (int64_t i = 0; i < n_terms; i++) {
        int64_t term = part->local[terms[i] < vocabulary ? terms[i] : vocabulary];
        if (term < 0) continue;
        asked[n++] = (Asked){weights[i] * index->largest[term], weights[i], term};
        scratch->query[term] = weights[i];
        lists += posting * (double)(index->offsets[term + 1] - index->offsets[term]);
    }
    if (!n) return 0;
    int64_t found = index->n_documents;
    const int32_t *rows = 0;
    if ((double)n_allowed * row_cost(index) >= lists) {
        qsort(asked, (size_t)n, sizeof(Asked), largest_first);
        found = gather_rows(index, scratch, asked, n, allowed, k, floor, grant);
        rows = scratch->rows;
    }
    found = keep_best(index, scratch->query, rows, rows ? 0 : allowed, found, k, scratch->hits);
    for (int64_t i = 0; i < n; i++) scratch->query[asked[i].term] = 0.0f;
    return found;
}

/* The k best rows of each query: out_rows i64 and out_scores f32 [n_queries, k], out_counts i64 [n_queries].
 *
 * terms i32 and weights f32 [offsets[n_queries]]; allowed u8 [rows of all parts] or null, with the number of its ones
 * in each part; grant: the share of what unread lists could give that a row is granted, 1 for exact results.
 */
void chamfer_impacts_search(const Part *parts, int64_t n_parts, Scratch *scratch, int64_t vocabulary,
                            const int32_t *terms, const float *weights, const int64_t *offsets, int64_t n_queries,
                            int64_t k, const uint8_t *allowed, const int64_t *n_allowed, float grant, int64_t *out_rows,
                            float *out_scores, int64_t *out_counts) {
    for (int64_t q = 0; q < n_queries; q++) {
        int64_t count = 0, start = offsets[q];
        float *scores = out_scores + q * k;
        for (const Part *part = parts; part < parts + n_parts; part++) {
            float floor = count == k ? scores[k - 1] : 0.0f;
            int64_t found = search_part(part, scratch, vocabulary, terms + start, weights + start, offsets[q + 1] - start,
                                        k, allowed ? allowed + part->first_row : 0,
                                        allowed ? n_allowed[part - parts] : part->index.n_documents, floor, grant);
            count = merge(scratch->hits, found, part->first_row, k, out_rows + q * k, scores, count);
        }
        out_counts[q] = count;
    }
}

#else
int chamfer_has_avx512(void) { return 0; }
#endif
