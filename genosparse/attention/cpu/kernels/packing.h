/* Rows of tensors into the forms that products.h wants, and back. */
#ifndef GENOSPARSE_PACKING_H
#define GENOSPARSE_PACKING_H

#include <math.h>

#include "products.h"
#include "tiles.h"

/* Names of one instruction set's functions. */
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define EXPORT(name) JOIN(name, VARIANT)

INLINE int64_t size_of(int64_t dtype) { return dtype == FLOAT32 ? 4 : 2; }

INLINE const char *row_of(const void *tensor, const int64_t *stride, int64_t batch, int64_t head, int64_t position,
                          int64_t dtype)
{
    return (const char *)tensor + (batch * stride[0] + head * stride[1] + position * stride[2]) * size_of(dtype);
}

INLINE float bfloat16_to_float(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float x;
    memcpy(&x, &wide, 4);
    return x;
}

/* To the nearest, ties to even; NaN stays NaN. */
INLINE uint16_t float_to_bfloat16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 64);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE void read_row(const char *from, int64_t dtype, int64_t count, float *to)
{
    if (dtype == FLOAT32) {
        memcpy(to, from, count * 4);
    } else if (dtype == BFLOAT16) {
        for (int64_t d = 0; d < count; d++) {
            uint16_t bits;
            memcpy(&bits, from + 2 * d, 2);
            to[d] = bfloat16_to_float(bits);
        }
    } else {
        uint16_t half[MAX_DIM] = {0};
        float wide[MAX_DIM];
        memcpy(half, from, count * 2);
        for (int64_t d = 0; d < count; d += LANES)
            vec_store(wide + d, vec_from_half(half + d));
        memcpy(to, wide, count * 4);
    }
}

INLINE void write_row(const float *from, int64_t dtype, int64_t count, char *to)
{
    if (dtype == FLOAT32) {
        memcpy(to, from, count * 4);
    } else if (dtype == BFLOAT16) {
        int64_t d = 0;
#if defined(UNIT_BFLOAT16)
        for (; d + 16 <= count; d += 16)
            _mm256_storeu_si256((__m256i *)(to + 2 * d), (__m256i)_mm512_cvtneps_pbh(vec_load(from + d)));
#endif
        for (; d < count; d++) {
            uint16_t bits = float_to_bfloat16(from[d]);
            memcpy(to + 2 * d, &bits, 2);
        }
    } else {
        float wide[MAX_DIM] = {0};
        uint16_t half[MAX_DIM];
        memcpy(wide, from, count * 4);
        for (int64_t d = 0; d < count; d += LANES)
            vec_to_half(half + d, vec_load(wide + d));
        memcpy(to, half, count * 2);
    }
}

/* A row as it is, without a call for the sizes that are common. */
INLINE void copy_row(const char *from, int64_t bytes, char *to)
{
    if (bytes % 32) {
        memcpy(to, from, bytes);
        return;
    }
    for (int64_t at = 0; at < bytes; at += 32)
        _mm256_storeu_si256((__m256i *)(to + at), _mm256_loadu_si256((const __m256i *)(from + at)));
}

/* One row of a tensor as units that have neighbours, zero in the padding; null is a row of zeros. */
INLINE void pack_row(const struct problem *problem, const char *from, int64_t dim, unit *to)
{
    int64_t head_dim = problem->head_dim;
    if (!from || dim != head_dim)
        memset(to, 0, dim / PER_UNIT * sizeof(unit));
    if (!from)
        return;
#if defined(UNIT_BFLOAT16)
    copy_row(from, head_dim * 2, (char *)to); /* as it is: this code is for bfloat16 alone */
#else
    if (problem->dtype == FLOAT32)
        copy_row(from, head_dim * 4, (char *)to);
    else
        read_row(from, problem->dtype, head_dim, to);
#endif
}

INLINE void ask_for_row(const struct problem *problem, const char *row)
{
    for (int64_t at = 0; at < problem->head_dim * size_of(problem->dtype); at += 64)
        _mm_prefetch(row + at, _MM_HINT_T0);
}

/* Turn a square of LANES by LANES units; rows at strides in units. */
INLINE void turn_square(const unit *from, int64_t from_row, unit *to, int64_t to_row)
{
#if defined(__AVX512F__)
    /* Pairs of rows, then fours, eights and all, change places within and between quarters of vectors. */
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++)
        a[i] = _mm512_loadu_si512(from + i * from_row);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + 2 + j]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + 2 + j]);
        }
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 4; j++) {
            b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + 4 + j], 0x88);
            b[i + 4 + j] = _mm512_shuffle_i32x4(a[i + j], a[i + 4 + j], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        a[j] = _mm512_shuffle_i32x4(b[j], b[8 + j], 0x88);
        a[8 + j] = _mm512_shuffle_i32x4(b[j], b[8 + j], 0xdd);
    }
    for (int i = 0; i < 16; i++)
        _mm512_storeu_si512(to + i * to_row, a[i]);
#else
    for (int i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++)
            to[i * to_row + j] = from[j * from_row + i];
#endif
}

/* Rows to columns. */
INLINE void turn(const unit *rows, int64_t dim, unit *columns)
{
    int64_t count = dim / PER_UNIT;
    for (int64_t u = 0; u < count; u += LANES)
        for (int row = 0; row < TILE; row += LANES)
            turn_square(rows + row * count + u, count, columns + u * TILE + row, TILE);
}

/* Rows to cross: with float32 a copy, which callers save where they can. With packed, in the order of a row of weights. */
INLINE void cross(const unit *rows, int64_t dim, unit *to, const int packed)
{
#if defined(UNIT_BFLOAT16)
    typedef uint16_t __attribute__((may_alias)) value;
    const value *values = (const value *)rows;
    for (int row = 0; row < TILE; row += 2) {
        int place = packed ? row / 32 * 16 + packed_unit(row / 2 % 16) : row / 2;
        for (int64_t d = 0; d < dim; d += LANES) {
            __m512i upper = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(values + row * dim + d)));
            __m512i lower = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(values + (row + 1) * dim + d)));
            _mm512_storeu_si512(to + place * dim + d, _mm512_or_si512(upper, _mm512_slli_epi32(lower, 16)));
        }
    }
#else
    (void)packed;
    memcpy(to, rows, TILE * dim * sizeof(unit));
#endif
}

/* Rows to turned. */
#if defined(UNIT_BFLOAT16)
INLINE void turn_values(const unit *rows, int64_t dim, unit *to)
{
    typedef uint16_t __attribute__((may_alias)) value;
    const value *from = (const value *)rows;
    value *values = (value *)to;
    for (int64_t d = 0; d < dim; d += 32) /* by lines of 64 bytes */
        for (int row = 0; row < TILE; row++)
            for (int64_t i = 0; i < 32; i++)
                values[(d + i) * TILE + row] = from[row * dim + d + i];
}
#endif

/* --- the keys of a slab --- */

/* Units of one packed tile. */
INLINE int64_t tile_units(int64_t dim) { return TILE * dim / PER_UNIT; }

/* Number of a packed tile of a head, and of its first unit: heads of the slab, then tiles. */
INLINE int64_t packed_tile(const struct problem *problem, int64_t head, int64_t tile)
{
    return (head - problem->first_head) * num_packed_tiles(problem) + tile;
}
INLINE int64_t packed_at(const struct problem *problem, int64_t head, int64_t tile, int64_t dim)
{
    return packed_tile(problem, head, tile) * tile_units(dim);
}

/* The larger one, and NaN if either is. */
INLINE float not_less(float a, float b) { return b > a || b != b ? b : a; }

/* What the squares of a row that are below float32's least number may come to. */
#define LOST_SQUARES 2e-36f

/* The largest norm of the columns; NaN if one is. */
INLINE float largest_norm(const unit *columns, int64_t dim)
{
    float largest = 0.0f;
    for (int column = 0; column < TILE; column += LANES) {
        vec squares = vec_all(0.0f);
        for (int64_t u = 0; u < dim / PER_UNIT; u++) {
            units x = units_load(columns + u * TILE + column);
            squares = units_fma(x, x, squares);
        }
        float square[LANES];
        vec_store(square, squares);
        for (int lane = 0; lane < LANES; lane++)
            largest = not_less(largest, square[lane]);
    }
    return sqrtf(largest + LOST_SQUARES);
}

/* Of the norm of a tile of values: under weights of up to 2^60, a million of them have a sum below float32's largest number. */
#define MOST_VALUE 1073741824.0f /* 2^30 */

/* Whether a tile's values may be summed without a maximum of scores; not where one is NaN. */
INLINE int are_summable(const unit *rows, int64_t dim)
{
    vec squares = vec_all(0.0f);
    for (int64_t u = 0; u < tile_units(dim); u += LANES)
        squares = units_fma(units_load(rows + u), units_load(rows + u), squares);
    return vec_sum(squares) <= MOST_VALUE * MOST_VALUE;
}

/* Item: a packed tile of a head of the slab. */
static void pack_tile(const struct problem *problem, int64_t item, char *scratch)
{
    int64_t num_tiles = num_packed_tiles(problem);
    int64_t head = problem->first_head + item / num_tiles, tile = item % num_tiles;
    int64_t batch = head / problem->num_kv_heads, kv_head = head % problem->num_kv_heads;
    int64_t dim = padded_dim(problem->head_dim), column_tile = tile - problem->num_grid_tiles;
    struct rules rules = rules_of(problem, kv_head);
    int64_t num_columns = columns_below(&rules, problem->length);

    int64_t position[TILE];
    uint64_t visible = 0, columns = 0;
    for (int lane = 0; lane < TILE; lane++) {
        int64_t x = tile * TILE + lane;
        int exists = x < problem->length;
        if (column_tile >= 0) {
            int64_t column = column_tile * TILE + lane;
            exists = column < num_columns;
            x = exists ? column_position(&rules, column) : 0;
        }
        position[lane] = exists ? x : -1;
        int hidden = exists && problem->key_mask && !problem->key_mask[batch * problem->length + x];
        visible |= (uint64_t)(exists && !hidden) << lane;
        if (column_tile < 0 && problem->query_entries && exists)
            columns |= (uint64_t)is_column(&rules, x) << lane;
    }
    problem->visible[item] = visible;
    problem->is_column[item] = columns;

    unit *rows = (unit *)scratch;
    for (int lane = 0; lane < TILE; lane++) /* rows come from memory: ask for all at once */
        if (visible >> lane & 1) {
            ask_for_row(problem, row_of(problem->k, problem->k_stride, batch, kv_head, position[lane], problem->dtype));
            ask_for_row(problem, row_of(problem->v, problem->v_stride, batch, kv_head, position[lane], problem->dtype));
        }
    int64_t at = packed_at(problem, head, tile, dim);
    struct {
        const void *tensor;
        const int64_t *stride;
        unit *columns, *cross;
    } sides[2] = {
        {problem->k, problem->k_stride, problem->k_columns, problem->k_cross},
        {problem->v, problem->v_stride, problem->v_columns, problem->v_cross},
    };
    for (int side = 0; side < 2; side++) {
        /* Hidden keys too are read as zeros: what stands there, even NaN, must not reach a sum. */
        for (int lane = 0; lane < TILE; lane++)
            pack_row(problem, visible >> lane & 1 ? row_of(sides[side].tensor, sides[side].stride, batch, kv_head,
                                                           position[lane], problem->dtype) : 0,
                     dim, rows + lane * dim / PER_UNIT);
        if (sides[side].columns)
            turn(rows, dim, sides[side].columns + at);
        if (sides[side].cross)
            cross(rows, dim, sides[side].cross + at, sides[side].cross == problem->v_cross);
    }
    if (problem->key_norm) /* rows are the values' now */
        problem->key_norm[item] = are_summable(rows, dim) ? largest_norm(sides[0].columns + at, dim) : INFINITY;
}

INLINE void pack_keys(const struct problem *problem)
{
    genosparse_parallel(problem, slab_size(problem) * num_packed_tiles(problem), pack_tile);
}

#endif
