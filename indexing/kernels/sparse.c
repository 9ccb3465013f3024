/* Exact top-k search of an inverted index of impacts. The numba twin, and the definition, are in _numba_impacts.py.
 *
 * Built and loaded with fast.c; used where the processor has AVX-512.
 */
#include "impacts.h"

#ifdef WIDE

int chamfer_has_avx512(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

/* Nanoseconds on a Zen 4 core for one posting, one posting of a saturating index, one row that selection skips, one term
 * of a scored row, and the scored row itself. They decide between accumulating lists and scoring the allowed rows
 * directly; results do not depend on that choice. */
#define POSTING_NS 0.7
#define SATURATED_NS 1.2
#define PASSED_NS 0.15
#define ROW_TERM_NS 0.9
#define ROW_NS 60.0

static double row_cost(const Impacts *index) {
    double n = (double)(index->n_documents ? index->n_documents : 1);
    return ROW_NS + ROW_TERM_NS * (double)index->row_offsets[index->n_documents] / n;
}

/* Accumulates the lists of all query terms and selects the rows to score. Returns their number. */
static int64_t select_by_lists(const Impacts *index, Scratch *scratch, const QueryTerm *terms, int64_t n,
                               const uint8_t *allowed, int64_t k, float floor) {
    float weights = 0;
    for (int64_t i = 0; i < n; i++) {
        add_list(index, scratch->scores, terms[i].term, terms[i].weight);
        weights += terms[i].weight;
    }
    ErrorBound bound = {allowed, index->float_values ? 0.5f * weights : 0.0f, REL_SUM_ERROR};
    return select_rows(index, scratch, bound, k, floor);
}

/* The segment's number of the query's i-th term, -1 if it has no such term. */
static inline int64_t local_term(const SegmentIndex *segment, const Request *request, int64_t i) {
    return segment->local[request->terms[i] < request->vocabulary ? request->terms[i] : request->vocabulary];
}

/* Puts the query's weights where score_row reads them, and those of its terms that the segment has into
 * scratch->query_terms. Returns the number of these. */
static int64_t load_query(const SegmentIndex *segment, Scratch *scratch, const Request *request) {
    int64_t n = 0;
    for (int64_t i = 0; i < request->n_terms; i++) {
        int64_t term = local_term(segment, request, i);
        if (term < 0) continue;
        scratch->query_terms[n++] = (QueryTerm){request->weights[i], term};
        scratch->query[term] = request->weights[i];
    }
    return n;
}

static void unload_query(Scratch *scratch, int64_t n) {
    for (int64_t i = 0; i < n; i++) scratch->query[scratch->query_terms[i].term] = 0.0f;
}

/* Puts the k best rows of one segment, `n_allowed` of which are allowed, into scratch->hits. Returns their number. */
static int64_t search_segment(const SegmentIndex *segment, Scratch *scratch, const Request *request,
                              int64_t n_allowed, float floor) {
    const Impacts *index = &segment->index;
    const uint8_t *allowed = request->allowed ? request->allowed + segment->first_row : 0;
    double lists = PASSED_NS * (double)index->n_documents, posting = index->saturating ? SATURATED_NS : POSTING_NS;
    QueryTerm *terms = scratch->query_terms;
    int64_t n = load_query(segment, scratch, request), n_rows = index->n_documents;
    if (!n) return 0;
    for (int64_t i = 0; i < n; i++)
        lists += posting * (double)(index->offsets[terms[i].term + 1] - index->offsets[terms[i].term]);
    const int32_t *rows = 0;
    if ((double)n_allowed * row_cost(index) >= lists) {
        n_rows = select_by_lists(index, scratch, terms, n, allowed, request->k, floor);
        rows = scratch->rows;
    }
    int64_t n_hits = keep_best(index, scratch->query, rows, rows ? 0 : allowed, n_rows, request->k, scratch->hits);
    unload_query(scratch, n);
    return n_hits;
}

/* The exact k best rows of all segments. Returns their number. */
static int64_t search_all(const SegmentIndex *segments, int64_t n_segments, Scratch *scratch, const Request *request,
                          int64_t *rows, float *scores) {
    int64_t count = 0;
    for (const SegmentIndex *segment = segments; segment < segments + n_segments; segment++) {
        float floor = count == request->k ? scores[request->k - 1] : 0.0f;
        int64_t n_allowed = request->n_allowed ? request->n_allowed[segment - segments] : segment->index.n_documents;
        int64_t n_hits = search_segment(segment, scratch, request, n_allowed, floor);
        count = merge(scratch->hits, n_hits, segment->first_row, request->k, rows, scores, count);
    }
    return count;
}

/* Keeps the `most` largest of n sums in their order, the first of equal ones. Returns the smallest that was kept, or 0
 * if there were fewer. */
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

/* Selects the best rows by the first n_read lists alone, scores these by all terms and returns the k best of them. */
static int64_t search_pruned(const SegmentIndex *segments, int64_t n_segments, Scratch *scratch, const Request *request,
                             int64_t n_read, int64_t *rows, float *scores) {
    int64_t seen = 0, count = 0;
    float floor = 0.0f;
    for (const SegmentIndex *segment = segments; segment < segments + n_segments; segment++) {
        for (int64_t i = 0; i < n_read; i++) {
            int64_t term = local_term(segment, request, i);
            if (term >= 0) add_list(&segment->index, scratch->scores, term, request->weights[i]);
        }
        ErrorBound bound = {request->allowed ? request->allowed + segment->first_row : 0, 0.0f, 0.0f};
        int64_t n_selected = select_rows(&segment->index, scratch, bound, request->rescored, floor);
        for (int64_t i = 0; i < n_selected; i++, seen++) {
            scratch->best_sums[seen] = scratch->uppers[i];
            scratch->best_rows[seen] = scratch->rows[i] + segment->first_row;
        }
        floor = keep_largest(scratch->best_sums, scratch->best_rows, &seen, request->rescored);
    }
    int64_t done = 0;
    for (const SegmentIndex *segment = segments; done < seen; segment++) {
        int64_t n = 0;
        for (; done < seen && scratch->best_rows[done] < segment->first_row + segment->index.n_documents; done++)
            scratch->rows[n++] = (int32_t)(scratch->best_rows[done] - segment->first_row);
        if (!n) continue;
        int64_t n_loaded = load_query(segment, scratch, request);
        n = keep_best(&segment->index, scratch->query, scratch->rows, 0, n, request->k, scratch->hits);
        unload_query(scratch, n_loaded);
        count = merge(scratch->hits, n, segment->first_row, request->k, rows, scores, count);
    }
    return count;
}

/* The k best rows of each query: out_rows i64 and out_scores f32 [n_queries, k], out_counts i64 [n_queries].
 *
 * queries: terms i32 and weights f32 [offsets[n_queries]], and reads i64 [n_queries]: 0 for an exact search, otherwise
 * the number of leading lists that select the `rescored` rows of a pruned search. allowed u8 [rows of all segments] or
 * null, n_allowed i64 [n_segments] the number of its ones in each segment.
 */
void chamfer_impacts_search(const SegmentIndex *segments, int64_t n_segments, Scratch *scratch, const Queries *queries,
                            int64_t k, int64_t rescored, const uint8_t *allowed, const int64_t *n_allowed,
                            int64_t *out_rows, float *out_scores, int64_t *out_counts) {
    for (int64_t q = 0; q < queries->n; q++) {
        int64_t start = queries->offsets[q], n_read = queries->reads[q];
        Request request = {queries->vocabulary, queries->terms + start, queries->weights + start,
                           queries->offsets[q + 1] - start, k, rescored, allowed, n_allowed};
        int64_t *rows = out_rows + q * k;
        float *scores = out_scores + q * k;
        out_counts[q] = n_read ? search_pruned(segments, n_segments, scratch, &request, n_read, rows, scores)
                               : search_all(segments, n_segments, scratch, &request, rows, scores);
    }
}

#else
int chamfer_has_avx512(void) { return 0; }
#endif
