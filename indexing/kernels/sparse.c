/* Exact top-k search of an inverted index of impacts; the twin and the definition are in _numba_impacts.py.
 *
 * Built and loaded like fast.c, used where the processor has AVX-512.
 */
#include "impacts.h"

#ifdef WIDE

int chamfer_has_avx512(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

/* What a posting, a document passed over in selection and a term of a scored row cost, in nanoseconds on a Zen 4 core:
 * what the choice between adding up lists and scoring the allowed rows goes by (the results do not depend on it). */
#define POSTING_NS 0.7
#define SATURATED_NS 1.2
#define PASSED_NS 0.15
#define ROW_TERM_NS 0.9
#define ROW_NS 60.0

static double row_cost(const Impacts *index) {
    double n = (double)(index->n_documents ? index->n_documents : 1);
    return ROW_NS + ROW_TERM_NS * (double)index->row_offsets[index->n_documents] / n;
}

/* Adds up all lists and finds the rows to score: their number. */
static int64_t gather_rows(const Impacts *index, Scratch *scratch, const Asked *asked, int64_t n,
                           const uint8_t *allowed, int64_t k, float floor) {
    float weights = 0;
    for (int64_t i = 0; i < n; i++) {
        add_list(index, scratch->scores, asked[i].term, asked[i].weight);
        weights += asked[i].weight;
    }
    Look look = {allowed, index->float_values ? 0.5f * weights : 0.0f, SLOP};
    return select_rows(index, scratch, look, k, floor);
}

/* The part's place of the query's i-th term, -1 where it has none. */
static inline int64_t place_of(const Part *part, const Wanted *wanted, int64_t i) {
    return part->local[wanted->terms[i] < wanted->vocabulary ? wanted->terms[i] : wanted->vocabulary];
}

/* Puts the query's weights where score_row reads them and its terms in `asked`: how many of them the part has. */
static int64_t load_query(const Part *part, Scratch *scratch, const Wanted *wanted) {
    int64_t n = 0;
    for (int64_t i = 0; i < wanted->n_terms; i++) {
        int64_t term = place_of(part, wanted, i);
        if (term < 0) continue;
        scratch->asked[n++] = (Asked){wanted->weights[i], term};
        scratch->query[term] = wanted->weights[i];
    }
    return n;
}

static void unload_query(Scratch *scratch, int64_t n) {
    for (int64_t i = 0; i < n; i++) scratch->query[scratch->asked[i].term] = 0.0f;
}

/* The k best of one part's rows, into scratch->hits: their number. `n_allowed` of the part's rows are allowed. */
static int64_t search_part(const Part *part, Scratch *scratch, const Wanted *wanted, int64_t n_allowed, float floor) {
    const Impacts *index = &part->index;
    const uint8_t *allowed = wanted->allowed ? wanted->allowed + part->first_row : 0;
    double lists = PASSED_NS * (double)index->n_documents, posting = index->saturating ? SATURATED_NS : POSTING_NS;
    Asked *asked = scratch->asked;
    int64_t n = load_query(part, scratch, wanted), found = index->n_documents;
    if (!n) return 0;
    for (int64_t i = 0; i < n; i++)
        lists += posting * (double)(index->offsets[asked[i].term + 1] - index->offsets[asked[i].term]);
    const int32_t *rows = 0;
    if ((double)n_allowed * row_cost(index) >= lists) {
        found = gather_rows(index, scratch, asked, n, allowed, wanted->k, floor);
        rows = scratch->rows;
    }
    found = keep_best(index, scratch->query, rows, rows ? 0 : allowed, found, wanted->k, scratch->hits);
    unload_query(scratch, n);
    return found;
}

/* The k best of all parts, exactly: how many there are. */
static int64_t search_all(const Part *parts, int64_t n_parts, Scratch *scratch, const Wanted *wanted, int64_t *rows,
                          float *scores) {
    int64_t count = 0;
    for (const Part *part = parts; part < parts + n_parts; part++) {
        float floor = count == wanted->k ? scores[wanted->k - 1] : 0.0f;
        int64_t n_allowed = wanted->n_allowed ? wanted->n_allowed[part - parts] : part->index.n_documents;
        int64_t found = search_part(part, scratch, wanted, n_allowed, floor);
        count = merge(scratch->hits, found, part->first_row, wanted->k, rows, scores, count);
    }
    return count;
}

/* Keeps the `most` largest of n sums, in order, of equal ones the first; returns the smallest kept, 0 where all are. */
static float keep_largest(float *sums, int64_t *rows, int64_t *n, int64_t most) {
    if (*n < most) return 0.0f;
    float kth = kth_largest(sums, *n, most);
    int64_t kept = 0, equal = most;
    for (int64_t i = 0; i < *n; i++) equal -= sums[i] > kth;
    for (int64_t i = 0; i < *n; i++) {
        if (sums[i] < kth || (sums[i] == kth && equal-- <= 0)) continue;
        sums[kept] = sums[i];
        rows[kept++] = rows[i];
    }
    *n = kept;
    return kth;
}

/* The k best of those rows that are best by the first n_read lists alone; all terms count in their scores. */
static int64_t search_pruned(const Part *parts, int64_t n_parts, Scratch *scratch, const Wanted *wanted,
                             int64_t n_read, int64_t *rows, float *scores) {
    int64_t seen = 0, count = 0;
    float floor = 0.0f;
    for (const Part *part = parts; part < parts + n_parts; part++) {
        for (int64_t i = 0; i < n_read; i++) {
            int64_t term = place_of(part, wanted, i);
            if (term >= 0) add_list(&part->index, scratch->scores, term, wanted->weights[i]);
        }
        Look look = {wanted->allowed ? wanted->allowed + part->first_row : 0, 0.0f, 0.0f};
        int64_t found = select_rows(&part->index, scratch, look, wanted->rescored, floor);
        for (int64_t i = 0; i < found; i++, seen++) {
            scratch->best_sums[seen] = scratch->uppers[i];
            scratch->best_rows[seen] = scratch->rows[i] + part->first_row;
        }
        floor = keep_largest(scratch->best_sums, scratch->best_rows, &seen, wanted->rescored);
    }
    int64_t done = 0;
    for (const Part *part = parts; done < seen; part++) {
        int64_t n = 0;
        for (; done < seen && scratch->best_rows[done] < part->first_row + part->index.n_documents; done++)
            scratch->rows[n++] = (int32_t)(scratch->best_rows[done] - part->first_row);
        if (!n) continue;
        int64_t known = load_query(part, scratch, wanted);
        n = keep_best(&part->index, scratch->query, scratch->rows, 0, n, wanted->k, scratch->hits);
        unload_query(scratch, known);
        count = merge(scratch->hits, n, part->first_row, wanted->k, rows, scores, count);
    }
    return count;
}

/* The k best rows of each query: out_rows i64 and out_scores f32 [n_queries, k], out_counts i64 [n_queries].
 *
 * queries: terms i32 and weights f32 [offsets[n_queries]], and reads i64 [n_queries]: 0 for the exact k best, otherwise
 * how many lists, the first ones, choose the `rescored` rows of a pruned search. allowed u8 [rows of all parts] or
 * null, with the number of its ones in each part.
 */
void chamfer_impacts_search(const Part *parts, int64_t n_parts, Scratch *scratch, const Queries *queries, int64_t k,
                            int64_t rescored, const uint8_t *allowed, const int64_t *n_allowed, int64_t *out_rows,
                            float *out_scores, int64_t *out_counts) {
    for (int64_t q = 0; q < queries->n; q++) {
        int64_t start = queries->offsets[q], n_read = queries->reads[q];
        Wanted wanted = {queries->vocabulary, queries->terms + start, queries->weights + start,
                         queries->offsets[q + 1] - start, k, rescored, allowed, n_allowed};
        int64_t *rows = out_rows + q * k;
        float *scores = out_scores + q * k;
        out_counts[q] = n_read ? search_pruned(parts, n_parts, scratch, &wanted, n_read, rows, scores)
                               : search_all(parts, n_parts, scratch, &wanted, rows, scores);
    }
}

#else
int chamfer_has_avx512(void) { return 0; }
#endif
