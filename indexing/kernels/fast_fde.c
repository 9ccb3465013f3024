/* Fixed dimensional encodings (fde.py) with AVX-512: bf16 products find the side of almost every token and plane, the
 * float64 sum that defines it decides where they cannot; sums of cells stay in registers; empty cells are filled by a
 * distance transform of the k-cube. Twin of _numba_fde.py: the same cells always, values equal to rounding.
 */
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#include <math.h>
#include <string.h>
#define BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define INLINE BF16 static inline __attribute__((always_inline))
#define WIDE 12  /* rows whose sums fill the vector registers */
#define SHORT 4  /* rows of the last, shorter blocks */
#define FAR 26   /* keys of the distance transform: distance << FAR | token */

/* What _native.FdeTables lays out; d a multiple of 32. */
typedef struct {
    int64_t dim, repetitions, k, p;
    int64_t columns;            /* repetitions * k, rounded up to 32 */
    const uint32_t *pairs;      /* [dim / 2, columns] bf16 pairs of the planes */
    const float *planes;        /* [repetitions * k, dim] */
    const float *lengths;       /* [columns] length of every plane, rounded up */
    const float *roundings;     /* [columns] how far its bf16 twin is from it */
    const float *projections;   /* [repetitions, dim, p], or NULL for the identity */
} tables;

/* Where one text is worked on. */
typedef struct {
    uint32_t *pairs;    /* [L, dim / 2] tokens as bf16 pairs */
    float *sizes;       /* [L, 2] length of every token, and its distance from its bf16 twin, both rounded up */
    uint16_t *bits;     /* [L, columns / 16] the sides */
    float *sums;        /* [2^k, dim] */
    const float **rows; /* [2^k] what each cell holds, before the projection */
    float **places;     /* [2^k] where it goes */
    uint32_t *keys;     /* [2^k] distance transform */
    int32_t *cells;     /* [L] cell of every token in one repetition */
    int32_t *next;      /* [L] next token of the same cell, or -1 */
    int32_t *heads;     /* [2^k, 3] first and last token of a cell, and their number */
} space;

int64_t chamfer_fde_space(int64_t longest, int64_t dim, int64_t columns, int64_t n_cells) {
    return longest * (dim * 2 + 8 + columns / 8 + 8) + n_cells * (dim * 4 + 16 + 4 + 12) + 11 * 64;
}

static void *take(char **at, int64_t bytes) {
    char *out = *at;
    *at += (bytes + 63) & ~(int64_t)63;
    return out;
}

static space divide(char *memory, int64_t longest, const tables *f) {
    int64_t n_cells = (int64_t)1 << f->k;
    char *at = (char *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
    space s;
    s.pairs = take(&at, longest * f->dim * 2);
    s.sums = take(&at, n_cells * f->dim * 4);
    s.rows = take(&at, n_cells * 8);
    s.places = take(&at, n_cells * 8);
    s.sizes = take(&at, longest * 8);
    s.cells = take(&at, longest * 4);
    s.next = take(&at, longest * 4);
    s.keys = take(&at, n_cells * 4);
    s.heads = take(&at, n_cells * 12);
    s.bits = take(&at, longest * f->columns / 8);
    return s;
}

/* Tokens to bf16 pairs, with their lengths and what the rounding took. */
BF16 static void round_tokens(const float *tokens, int64_t count, int64_t dim, const space *s) {
    for (int64_t t = 0; t < count; t++) {
        __m512 square = _mm512_setzero_ps(), lost = _mm512_setzero_ps();
        for (int64_t i = 0; i < dim; i += 32) {
            __m512 low = _mm512_loadu_ps(tokens + t * dim + i), high = _mm512_loadu_ps(tokens + t * dim + i + 16);
            __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
            _mm512_store_si512((void *)(s->pairs + (t * dim + i) / 2), both);
            __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
            __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
            __m512 a = _mm512_sub_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32(first, 16)));
            __m512 b = _mm512_sub_ps(high, _mm512_castsi512_ps(_mm512_slli_epi32(second, 16)));
            square = _mm512_fmadd_ps(low, low, _mm512_fmadd_ps(high, high, square));
            lost = _mm512_fmadd_ps(a, a, _mm512_fmadd_ps(b, b, lost));
        }
        /* One in a thousand for the rounding of these sums; 1e-17 where their squares fall below the smallest float. */
        s->sizes[2 * t] = 1.001f * sqrtf(_mm512_reduce_add_ps(square)) + 1e-17f;
        s->sizes[2 * t + 1] = 1.001f * sqrtf(_mm512_reduce_add_ps(lost)) + 1e-17f;
    }
}

/* The side that counts: the float64 sum in eight lanes, as _numba_fde.side has it. Products of floats are exact. */
BF16 static int exact_side(const float *token, const float *plane, int64_t dim) {
    __m512d sum = _mm512_setzero_pd();
    double lanes[8], total = 0;
    for (int64_t i = 0; i < dim; i += 8)
        sum = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_loadu_ps(token + i)), _mm512_cvtps_pd(_mm256_loadu_ps(plane + i)),
                              sum);
    _mm512_storeu_pd(lanes, sum);
    for (int i = 0; i < 8; i++) total += lanes[i];
    return total > 0;
}

/* 16 sides of one token: a product decides if it is farther from 0 than it can be from the exact one. */
INLINE uint16_t decide(__m512 product, const tables *f, const float *tokens, const space *s, int64_t t, int64_t column) {
    __m512 length = _mm512_loadu_ps(f->lengths + column), rounding = _mm512_loadu_ps(f->roundings + column);
    __m512 error = _mm512_fmadd_ps(_mm512_set1_ps(s->sizes[2 * t]), rounding,
                                   _mm512_mul_ps(_mm512_set1_ps(s->sizes[2 * t + 1]), length));
    __mmask16 sure = _mm512_cmp_ps_mask(_mm512_abs_ps(product), error, _CMP_GT_OQ);
    uint32_t bits = _mm512_cmp_ps_mask(product, _mm512_setzero_ps(), _CMP_GT_OQ);
    int64_t real = f->repetitions * f->k - column;
    uint32_t unsure = (uint16_t)~sure & (real >= 16 ? 0xFFFFu : (1u << real) - 1);
    for (; unsure; unsure &= unsure - 1) {
        int64_t at = __builtin_ctz(unsure);
        uint32_t side = (uint32_t)exact_side(tokens + t * f->dim, f->planes + (column + at) * f->dim, f->dim);
        bits = (bits & ~(1u << at)) | side << at;
    }
    return (uint16_t)bits;
}

/* Sides of `block` tokens from `first` (beyond the end the last one again) with 16 `vectors` planes from `column`. */
INLINE void sides(const tables *f, const float *tokens, const space *s, int64_t first, int64_t count, int64_t column,
                  const int block, const int vectors) {
    int64_t pairs = f->dim / 2;
    const uint32_t *row[WIDE];
    __m512 sum[WIDE][2];
#pragma GCC unroll 12
    for (int t = 0; t < block; t++) {
        row[t] = s->pairs + (first + t < count ? first + t : count - 1) * pairs;
        sum[t][0] = sum[t][1] = _mm512_setzero_ps();
    }
    for (int64_t i = 0; i < pairs; i++) {
        __m512bh a = (__m512bh)_mm512_loadu_si512(f->pairs + i * f->columns + column), b = a;
        if (vectors == 2) b = (__m512bh)_mm512_loadu_si512(f->pairs + i * f->columns + column + 16);
#pragma GCC unroll 12
        for (int t = 0; t < block; t++) {
            __m512bh x = (__m512bh)_mm512_set1_epi32((int)row[t][i]);
            sum[t][0] = _mm512_dpbf16_ps(sum[t][0], a, x);
            if (vectors == 2) sum[t][1] = _mm512_dpbf16_ps(sum[t][1], b, x);
        }
    }
    for (int t = 0; t < block && first + t < count; t++) {
        uint16_t *bits = s->bits + (first + t) * f->columns / 16 + column / 16;
        bits[0] = decide(sum[t][0], f, tokens, s, first + t, column);
        if (vectors == 2) bits[1] = decide(sum[t][1], f, tokens, s, first + t, column + 16);
    }
}

BF16 static void all_sides(const tables *f, const float *tokens, const space *s, int64_t count) {
    int64_t real = f->repetitions * f->k;
    for (int64_t first = 0; first < count;) {
        int wide = count - first > 2 * SHORT;
        for (int64_t column = 0; column < real; column += 32) {
            int one = real - column <= 16;
            if (wide && one) sides(f, tokens, s, first, count, column, WIDE, 1);
            if (wide && !one) sides(f, tokens, s, first, count, column, WIDE, 2);
            if (!wide && one) sides(f, tokens, s, first, count, column, SHORT, 1);
            if (!wide && !one) sides(f, tokens, s, first, count, column, SHORT, 2);
        }
        first += wide ? WIDE : SHORT;
    }
}

/* The tokens of every cell of one repetition as linked lists in ascending order. */
BF16 static void gather(const tables *f, const space *s, int64_t repetition, int64_t count) {
    int64_t n_cells = (int64_t)1 << f->k, bit = repetition * f->k;
    for (int64_t c = 0; c < n_cells; c++) s->heads[3 * c] = -1, s->heads[3 * c + 2] = 0;
    for (int64_t t = 0; t < count; t++) {
        uint32_t bits;
        const uint16_t *at = s->bits + t * f->columns / 16 + bit / 16; /* k <= 16: two words hold the cell */
        bits = at[0] | (bit % 16 + f->k > 16 ? (uint32_t)at[1] << 16 : 0);
        int64_t c = (bits >> (bit % 16)) & (n_cells - 1);
        int32_t *head = s->heads + 3 * c;
        s->next[t] = -1;
        if (head[0] < 0) head[0] = (int32_t)t;
        else s->next[head[1]] = (int32_t)t;
        head[1] = (int32_t)t;
        head[2]++;
    }
}

/* The sum of a cell's tokens times `scale`, 128 dimensions at a time. */
BF16 static void add_up(const float *tokens, int64_t dim, const int32_t *next, int32_t first, float scale, float *out) {
    for (int64_t i = 0; i < dim; i += 128) {
        int vectors = dim - i < 128 ? (int)(dim - i) / 16 : 8;
        __m512 sum[8];
        for (int v = 0; v < 8; v++) sum[v] = _mm512_setzero_ps();
        for (int32_t t = first; t >= 0; t = next[t]) {
            const float *token = tokens + t * dim + i;
            if (vectors == 8) {
#pragma GCC unroll 8
                for (int v = 0; v < 8; v++) sum[v] = _mm512_add_ps(sum[v], _mm512_loadu_ps(token + 16 * v));
            } else {
                for (int v = 0; v < vectors; v++) sum[v] = _mm512_add_ps(sum[v], _mm512_loadu_ps(token + 16 * v));
            }
        }
        for (int v = 0; v < vectors; v++)
            _mm512_store_ps(out + i + 16 * v, _mm512_mul_ps(sum[v], _mm512_set1_ps(scale)));
    }
}

/* For every cell the lowest token at the least Hamming distance: a (min, +) convolution, one bit after the other. */
BF16 static void nearest(uint32_t *keys, const int32_t *heads, int64_t k) {
    int64_t n_cells = (int64_t)1 << k;
    for (int64_t c = 0; c < n_cells; c++) keys[c] = heads[3 * c] < 0 ? 17u << FAR : (uint32_t)heads[3 * c];
    for (int64_t step = 1; step < n_cells; step <<= 1)
        for (int64_t at = 0; at < n_cells; at += 2 * step)
            for (int64_t c = at; c < at + step; c++) {
                uint32_t low = keys[c], high = keys[c + step];
                keys[c] = high + (1u << FAR) < low ? high + (1u << FAR) : low;
                keys[c + step] = low + (1u << FAR) < high ? low + (1u << FAR) : high;
            }
}

/* places[i][0..p) = rows[i] projected, for `block` rows from `first`, outputs `from` to `from` + 16. */
INLINE void project(const space *s, const float *matrix, int64_t dim, int64_t p, int64_t first, int64_t count,
                    int64_t from, const int block) {
    __mmask16 mask = p - from >= 16 ? 0xFFFF : (__mmask16)((1u << (p - from)) - 1);
    const float *row[WIDE];
    __m512 sum[WIDE];
#pragma GCC unroll 12
    for (int i = 0; i < block; i++) {
        row[i] = s->rows[first + i < count ? first + i : count - 1];
        sum[i] = _mm512_setzero_ps();
    }
    for (int64_t d = 0; d < dim; d++) {
        __m512 weights = _mm512_maskz_loadu_ps(mask, matrix + d * p + from);
#pragma GCC unroll 12
        for (int i = 0; i < block; i++) sum[i] = _mm512_fmadd_ps(_mm512_set1_ps(row[i][d]), weights, sum[i]);
    }
    for (int i = 0; i < block && first + i < count; i++)
        _mm512_mask_storeu_ps(s->places[first + i] + from, mask, sum[i]);
}

BF16 static void project_all(const tables *f, const space *s, int64_t repetition, int64_t count) {
    if (f->projections == 0) {
        for (int64_t i = 0; i < count; i++) memcpy(s->places[i], s->rows[i], (size_t)f->dim * 4);
        return;
    }
    const float *matrix = f->projections + repetition * f->dim * f->p;
    for (int64_t from = 0; from < f->p; from += 16)
        for (int64_t first = 0; first < count;) {
            int wide = count - first > 2 * SHORT;
            if (wide) project(s, matrix, f->dim, f->p, first, count, from, WIDE);
            else project(s, matrix, f->dim, f->p, first, count, from, SHORT);
            first += wide ? WIDE : SHORT;
        }
}

/* One repetition of one text: out f32 [2^k, p]. A document's cells hold means, a query's sums. */
BF16 static void encode_cells(const tables *f, const float *tokens, const space *s, int64_t repetition, int64_t count,
                              int is_query, int fill, float *out) {
    int64_t n_cells = (int64_t)1 << f->k, n_rows = 0;
    gather(f, s, repetition, count);
    if (fill) nearest(s->keys, s->heads, f->k);
    for (int64_t c = 0; c < n_cells; c++) {
        int32_t first = s->heads[3 * c], number = s->heads[3 * c + 2];
        if (number == 0 && !fill) {
            memset(out + c * f->p, 0, (size_t)f->p * 4);
            continue;
        }
        s->places[n_rows] = out + c * f->p;
        if (number > 1) {
            float *sum = s->sums + c * f->dim;
            add_up(tokens, f->dim, s->next, first, is_query ? 1.0f : 1.0f / (float)number, sum);
            s->rows[n_rows++] = sum;
        } else {
            int64_t only = number ? first : (int64_t)(s->keys[c] & ((1u << FAR) - 1));
            s->rows[n_rows++] = tokens + only * f->dim;
        }
    }
    project_all(f, s, repetition, n_rows);
}

/* Encodings f32 [n, repetitions, 2^k, p] of n texts of tokens f32 [T, dim], offsets i64 [n + 1]. `memory` is
 * chamfer_fde_space() bytes for the longest text. */
BF16 void chamfer_fde(const tables *f, const float *tokens, const int64_t *offsets, int64_t n, int64_t longest,
                      int is_query, int fill, char *memory, float *out) {
    space s = divide(memory, longest, f);
    int64_t cells = f->p << f->k, size = f->repetitions * cells;
    for (int64_t i = 0; i < n; i++) {
        const float *own = tokens + offsets[i] * f->dim;
        int64_t count = offsets[i + 1] - offsets[i];
        if (count == 0) {
            memset(out + i * size, 0, (size_t)size * 4);
            continue;
        }
        round_tokens(own, count, f->dim, &s);
        all_sides(f, own, &s, count);
        for (int64_t r = 0; r < f->repetitions; r++)
            encode_cells(f, own, &s, r, count, is_query, fill && !is_query, out + i * size + r * cells);
    }
}
#endif
