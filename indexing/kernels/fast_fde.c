/* Fixed dimensional encodings (fde.py) with AVX-512. bf16 products decide on which side of a plane a token lies; where
 * their rounding leaves that undecided, the float64 sum that defines the side decides. A count-sketch is a series of
 * signed additions, one token per lane. Empty cells are filled by a distance transform of the k-cube. The twin in
 * _numba_fde.py finds exactly the same cells; values are equal up to rounding. */
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#define BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define INLINE BF16 static inline __attribute__((always_inline))
#define WIDE 12 /* rows of a block: their sums fill the vector registers */
#define SHORT 4 /* rows of the last blocks of a text */
#define TILE 64 /* tokens whose values fill the first-level cache if they have 128 dimensions */
#define DISTANCE_SHIFT 26 /* keys of the distance transform: distance << DISTANCE_SHIFT | token */

/* The layout of _native.FdeTables; dim is a multiple of 32, k at most 16. */
typedef struct {
    int64_t dim, repetitions, k, p;
    int64_t columns;            /* repetitions * k, rounded up to 32 */
    const uint32_t *pairs;      /* [dim / 2, columns] bf16 pairs of the planes */
    const float *planes;        /* [repetitions * k, dim] */
    const float *lengths;       /* [columns] an upper bound on the length of every plane */
    const float *roundings;     /* [columns] an upper bound on the rounding error of its bf16 copy */
    const float *projections;   /* [repetitions, dim, p]; NULL for the identity and for a count-sketch */
    const int32_t *slot_ends;   /* count-sketch: [repetitions, p] end of each slot in the next two arrays */
    const int32_t *slot_dims;   /* [repetitions * dim] the dimensions of the slots, one slot after another */
    const float *slot_signs;    /* [repetitions * dim] their signs; all three are NULL without a count-sketch */
} tables;

/* Working memory for one text. A cell sums rows of `width` floats: its tokens, or their count-sketches. */
typedef struct {
    int64_t width;
    uint32_t *pairs;      /* [L, dim / 2] tokens as bf16 pairs */
    float *sizes;         /* [L, 2] upper bounds on every token's length and on the rounding error of its bf16 copy */
    uint16_t *bits;       /* [L, columns / 16] the sides, one bit each, and one word of padding */
    float *tile;          /* [dim, TILE] tokens, transposed */
    float *transposed;    /* [width, TILE] sketches, transposed */
    float *sketches;      /* [repetitions, L rounded up to 16, width] */
    float *sums;          /* [2^k, width] */
    const float **rows;   /* [2^k] the content of each cell before the projection */
    float **targets;      /* [2^k] where its projection is stored */
    float *scales;        /* [2^k] the factor that it is multiplied by */
    uint32_t *keys;       /* [2^k] lowest token of a cell; after `nearest`, distance and token */
    int32_t *numbers;     /* [2^k] number of tokens in a cell */
    int32_t *cells;       /* [L] cell of every token in one repetition */
} space;

/* Reserves `bytes` at *at, in whole cache lines. */
static void *take(char **at, int64_t bytes) {
    char *start = *at;
    *at += (bytes + 63) & ~(int64_t)63;
    return start;
}

/* Lays out the arrays for texts of at most `longest` tokens. Returns the bytes needed; memory may be NULL to count. */
static int64_t divide(char *memory, int64_t longest, const tables *f, space *s) {
    int64_t n_cells = (int64_t)1 << f->k, padded = (longest + 15) & ~15, sketched = f->slot_ends != 0;
    char *start = (char *)(((uintptr_t)memory + 63) & ~(uintptr_t)63), *at = start;
    s->width = sketched ? (f->p + 15) & ~15 : f->dim;
    s->pairs = take(&at, longest * f->dim * 2);
    s->sizes = take(&at, longest * 8);
    s->bits = take(&at, longest * f->columns / 8 + 2);
    s->tile = take(&at, sketched * f->dim * TILE * 4);
    s->transposed = take(&at, sketched * s->width * TILE * 4);
    s->sketches = take(&at, sketched * f->repetitions * padded * s->width * 4);
    s->sums = take(&at, n_cells * s->width * 4);
    s->rows = take(&at, n_cells * 8);
    s->targets = take(&at, n_cells * 8);
    s->scales = take(&at, n_cells * 4);
    s->keys = take(&at, n_cells * 4);
    s->numbers = take(&at, n_cells * 4);
    s->cells = take(&at, longest * 4);
    return at - start + 64;
}

static int64_t longest_text(const int64_t *offsets, int64_t n) {
    int64_t longest = 0;
    for (int64_t i = 0; i < n; i++)
        if (offsets[i + 1] - offsets[i] > longest) longest = offsets[i + 1] - offsets[i];
    return longest;
}

/* Converts tokens to bf16 pairs; bounds their lengths and rounding errors. Returns false if a length is not finite. */
BF16 static int round_tokens(const float *tokens, int64_t count, int64_t dim, const space *s) {
    float all = 0.0f;
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
        /* 0.1 % covers the rounding of these sums, 1e-17 squares that underflow. */
        s->sizes[2 * t] = 1.001f * sqrtf(_mm512_reduce_add_ps(square)) + 1e-17f;
        s->sizes[2 * t + 1] = 1.001f * sqrtf(_mm512_reduce_add_ps(lost)) + 1e-17f;
        all += s->sizes[2 * t];
    }
    return all < INFINITY;
}

/* The defining side, as in _numba_fde.side: a sum in 16 lanes of float64, in which products of floats are exact. */
BF16 static int exact_side(const float *token, const float *plane, int64_t dim) {
    __m512d a = _mm512_setzero_pd(), b = a;
    for (int64_t i = 0; i < dim; i += 16) {
        a = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_loadu_ps(token + i)), _mm512_cvtps_pd(_mm256_loadu_ps(plane + i)), a);
        b = _mm512_fmadd_pd(_mm512_cvtps_pd(_mm256_loadu_ps(token + i + 8)),
                            _mm512_cvtps_pd(_mm256_loadu_ps(plane + i + 8)), b);
    }
    a = _mm512_add_pd(a, b);
    __m256d four = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    __m128d two = _mm_add_pd(_mm256_castpd256_pd128(four), _mm256_extractf64x2_pd(four, 1));
    return two[0] + two[1] > 0;
}

/* The sides of one token and 16 planes. A product decides if its magnitude exceeds its error bound. */
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

/* Sides of `block` tokens from `first` (the last one repeats) and 16 * `vectors` planes from `column`. */
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
    __m512 products[WIDE][2]; /* a copy: the variable index below would keep `sum` out of registers */
#pragma GCC unroll 12
    for (int t = 0; t < block; t++) products[t][0] = sum[t][0], products[t][1] = sum[t][1];
    for (int t = 0; t < block && first + t < count; t++) {
        uint16_t *bits = s->bits + (first + t) * f->columns / 16 + column / 16;
        bits[0] = decide(products[t][0], f, tokens, s, first + t, column);
        if (vectors == 2) bits[1] = decide(products[t][1], f, tokens, s, first + t, column + 16);
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

/* out[16, 16] = the transpose of in[16, 16], whose rows are `to` and `from` floats apart. */
BF16 static void transpose(const float *in, int64_t from, float *out, int64_t to) {
    __m512 a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_ps(in + i * from);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            __m512d low = _mm512_castps_pd(b[i + j]), high = _mm512_castps_pd(b[i + j + 2]);
            a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            b[i + j] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0x88);
            b[i + j + 4] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        _mm512_storeu_ps(out + j * to, _mm512_shuffle_f32x4(b[j], b[j + 8], 0x88));
        _mm512_storeu_ps(out + (j + 8) * to, _mm512_shuffle_f32x4(b[j], b[j + 8], 0xdd));
    }
}

/* Transposes tokens from `first` into the tile; the last one repeats. Returns the number of groups of 16 tokens. */
BF16 static int64_t transpose_tokens(const float *tokens, int64_t dim, const space *s, int64_t first, int64_t count) {
    int64_t left = count - first, vectors = left >= TILE ? TILE / 16 : (left + 15) / 16;
    float last[16 * 16];
    for (int64_t v = 0; v < vectors; v++)
        for (int64_t d = 0; d < dim; d += 16) {
            int64_t t = first + 16 * v;
            float *to = s->tile + d * TILE + 16 * v;
            if (t + 16 <= count) {
                transpose(tokens + t * dim + d, dim, to, TILE);
                continue;
            }
            for (int i = 0; i < 16; i++) memcpy(last + 16 * i, tokens + (t + i < count ? t + i : count - 1) * dim + d, 64);
            transpose(last, 16, to, TILE);
        }
    return vectors;
}

/* Every slot of one repetition for 16 * `vectors` tokens of the tile: signed sums of dimensions, in ascending order. */
INLINE void add_slots(const tables *f, const space *s, int64_t repetition, const int vectors) {
    const int32_t *ends = f->slot_ends + repetition * f->p;
    int64_t at = repetition * f->dim;
    for (int64_t slot = 0; slot < f->p; slot++) {
        __m512 sum[4];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sum[v] = _mm512_setzero_ps();
        for (; at < ends[slot]; at++) {
            const float *values = s->tile + (int64_t)f->slot_dims[at] * TILE;
            __m512 sign = _mm512_set1_ps(f->slot_signs[at]);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                sum[v] = _mm512_fmadd_ps(sign, _mm512_load_ps(values + 16 * v), sum[v]);
        }
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) _mm512_store_ps(s->transposed + slot * TILE + 16 * v, sum[v]);
    }
}

/* The count-sketch of every token in every repetition. */
BF16 static void sketch(const tables *f, const float *tokens, const space *s, int64_t count) {
    int64_t padded = (count + 15) & ~15;
    memset(s->transposed, 0, (size_t)(s->width * TILE * 4));
    for (int64_t first = 0; first < count; first += TILE) {
        int64_t vectors = transpose_tokens(tokens, f->dim, s, first, count);
        for (int64_t r = 0; r < f->repetitions; r++) {
            if (vectors == 4) add_slots(f, s, r, 4);
            else if (vectors == 3) add_slots(f, s, r, 3);
            else if (vectors == 2) add_slots(f, s, r, 2);
            else add_slots(f, s, r, 1);
            for (int64_t v = 0; v < vectors; v++)
                for (int64_t slot = 0; slot < s->width; slot += 16)
                    transpose(s->transposed + slot * TILE + 16 * v, TILE,
                         s->sketches + (r * padded + first + 16 * v) * s->width + slot, s->width);
        }
    }
}

/* Finds the cell of every token in one repetition, and the number of tokens and the lowest token of every cell. */
BF16 static void find_cells(const tables *f, const space *s, int64_t repetition, int64_t count) {
    int64_t n_cells = (int64_t)1 << f->k, bit = repetition * f->k;
    for (int64_t c = 0; c < n_cells; c++) s->keys[c] = 17u << DISTANCE_SHIFT, s->numbers[c] = 0;
    for (int64_t t = count - 1; t >= 0; t--) {
        uint32_t bits; /* the bits of a cell may span two words */
        memcpy(&bits, s->bits + t * f->columns / 16 + bit / 16, 4);
        int32_t c = (int32_t)((bits >> (bit % 16)) & (uint32_t)(n_cells - 1));
        s->cells[t] = c;
        s->keys[c] = (uint32_t)t;
        s->numbers[c]++;
    }
}

/* sums[cell] = the sum of the cell's rows, of rows [count, width]. The cell's first row overwrites the old sum. */
INLINE void add_rows(const space *s, const float *rows, int64_t count, const int64_t width) {
    for (int64_t t = 0; t < count; t++) {
        int32_t cell = s->cells[t];
        __mmask16 others = s->keys[cell] == (uint32_t)t ? 0 : 0xFFFF;
        float *sum = s->sums + cell * width;
#pragma GCC unroll 8
        for (int64_t i = 0; i < width; i += 16)
            _mm512_store_ps(sum + i, _mm512_add_ps(_mm512_maskz_load_ps(others, sum + i),
                                                   _mm512_loadu_ps(rows + t * width + i)));
    }
}

/* For every cell the lowest token at the least Hamming distance: a (min, +) convolution, bit by bit. */
BF16 static void nearest(uint32_t *keys, int64_t n_cells) {
    for (int64_t step = 1; step < n_cells; step <<= 1)
        for (int64_t at = 0; at < n_cells; at += 2 * step)
            for (int64_t c = at; c < at + step; c++) {
                uint32_t low = keys[c], high = keys[c + step];
                keys[c] = high + (1u << DISTANCE_SHIFT) < low ? high + (1u << DISTANCE_SHIFT) : low;
                keys[c + step] = low + (1u << DISTANCE_SHIFT) < high ? low + (1u << DISTANCE_SHIFT) : high;
            }
}

INLINE __mmask16 first_lanes(int64_t n) { return n >= 16 ? 0xFFFF : (__mmask16)((1u << n) - 1); }

/* targets[i] = scales[i] * projection of rows[i], for `block` rows from `first`, outputs `from` to `from` + 15. */
INLINE void project(const space *s, const float *matrix, int64_t dim, int64_t p, int64_t first, int64_t count,
                    int64_t from, const int block) {
    __mmask16 mask = first_lanes(p - from);
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
#pragma GCC unroll 12
    for (int i = 0; i < block; i++)
        if (first + i < count)
            _mm512_mask_storeu_ps(s->targets[first + i] + from, mask,
                                  _mm512_mul_ps(sum[i], _mm512_set1_ps(s->scales[first + i])));
}

BF16 static void project_all(const tables *f, const space *s, int64_t repetition, int64_t count) {
    if (f->projections == 0) { /* the rows are sketches already, or the projection is the identity */
        for (int64_t i = 0; i < count; i++)
            for (int64_t d = 0; d < f->p; d += 16) {
                __m512 row = _mm512_maskz_loadu_ps(first_lanes(f->p - d), s->rows[i] + d);
                _mm512_mask_storeu_ps(s->targets[i] + d, first_lanes(f->p - d),
                                      _mm512_mul_ps(row, _mm512_set1_ps(s->scales[i])));
            }
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

/* Encodes one repetition of one text: out f32 [2^k, p]. A document's cells hold means, a query's sums. */
BF16 static void encode_cells(const tables *f, const float *tokens, const space *s, int64_t repetition, int64_t count,
                              int is_query, int fill, float *out) {
    int64_t n_cells = (int64_t)1 << f->k, n_rows = 0, width = s->width;
    const float *rows = f->slot_ends ? s->sketches + repetition * ((count + 15) & ~15) * width : tokens;
    find_cells(f, s, repetition, count);
    if (width == 16) add_rows(s, rows, count, 16);
    else if (width == 128) add_rows(s, rows, count, 128);
    else add_rows(s, rows, count, width);
    if (fill) nearest(s->keys, n_cells);
    else memset(out, 0, (size_t)(n_cells * f->p * 4));
    for (int64_t c = 0; c < n_cells; c++) {
        int32_t number = s->numbers[c];
        s->targets[n_rows] = out + c * f->p;
        int64_t nearest_token = s->keys[c] & ((1u << DISTANCE_SHIFT) - 1);
        s->rows[n_rows] = number ? s->sums + c * width : rows + nearest_token * width;
        s->scales[n_rows] = is_query || !number ? 1.0f : 1.0f / (float)number;
        n_rows += fill || number; /* no branch, since it could not be predicted which cells are empty */
    }
    project_all(f, s, repetition, n_rows);
}

/* Encodings f32 [n, repetitions, 2^k, p] of n texts of tokens f32 [T, dim], offsets i64 [n + 1]. Returns 1, or 0 if a
 * token or its squared length is not finite, or -1 if working memory cannot be allocated. */
BF16 int chamfer_fde(const tables *f, const float *tokens, const int64_t *offsets, int64_t n, int is_query, int fill,
                     float *out) {
    space s;
    int64_t longest = longest_text(offsets, n);
    char *memory = malloc((size_t)divide(0, longest, f, &s));
    if (memory == 0) return -1;
    divide(memory, longest, f, &s);
    int64_t cells = f->p << f->k, size = f->repetitions * cells;
    int finite = 1;
    for (int64_t i = 0; i < n; i++) {
        const float *text = tokens + offsets[i] * f->dim;
        int64_t count = offsets[i + 1] - offsets[i];
        if (count == 0) {
            memset(out + i * size, 0, (size_t)size * 4);
            continue;
        }
        finite &= round_tokens(text, count, f->dim, &s);
        all_sides(f, text, &s, count);
        if (f->slot_ends) sketch(f, text, &s, count);
        for (int64_t r = 0; r < f->repetitions; r++)
            encode_cells(f, text, &s, r, count, is_query, fill, out + i * size + r * cells);
    }
    free(memory);
    return finite;
}
#endif
