/* The one matrix product that all kernels are made of:
 *
 *     sum[row][column] (+)= over u: a(row, u) * b[u][column],
 *
 * where a is broadcast unit by unit and b read as rows of units. A tile's operands come in three forms:
 *
 *     rows     [TILE][D / PER_UNIT]: a unit has neighbours of a row; a, by row
 *     columns  [D / PER_UNIT][TILE]: the same turned; b, so that lanes are the tile's positions
 *     cross    [TILE / PER_UNIT][D]: a unit has the values of neighbouring rows; b, so that lanes are dimensions
 *     turned   [D][TILE / PER_UNIT]: cross turned; a, so that rows are dimensions
 *
 * With float32 units rows and cross are the same, and turned is them read the other way round.
 */
#ifndef GENOSPARSE_PRODUCTS_H
#define GENOSPARSE_PRODUCTS_H

#include "vectors.h"

#if defined(UNIT_AMX)

/* AMX multiplies tiles of 16 rows of 16 units with tiles of 16 rows of b. Tiles 0 to 3 are sums, 4 and 5 of a, 6 and 7 of
 * b: each tile that is read serves two products. */
static const struct {
    uint8_t palette, start_row, unused[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_configuration = {
    .palette = 1,
    .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

INLINE void begin_products(void) { _tile_loadconfig(&tile_configuration); }

/* The system need not keep the tiles of a thread that has none in use. */
INLINE void end_products(void) { _tile_release(); }

/* rows, columns are multiples of 32, depth of 16, and a_unit is 1; with add, to what is in sum. */
INLINE void product(
    int64_t rows, int64_t columns, int64_t depth, const unit *a, int64_t a_row, int64_t a_unit, const unit *b,
    int64_t b_row, float *sum, int64_t sum_row, const int add)
{
    int64_t a_bytes = a_row * 4, b_bytes = b_row * 4, sum_bytes = sum_row * 4;
    (void)a_unit;
    __asm__ volatile("" ::: "memory"); /* a compiler does not know that tiles are loaded from what was stored before */
    for (int64_t column = 0; column < columns; column += 32)
        for (int64_t row = 0; row < rows; row += 32) {
            float *upper = sum + row * sum_row + column, *lower = upper + 16 * sum_row;
            if (add) {
                _tile_loadd(0, upper, sum_bytes);
                _tile_loadd(1, upper + 16, sum_bytes);
                _tile_loadd(2, lower, sum_bytes);
                _tile_loadd(3, lower + 16, sum_bytes);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            for (int64_t u = 0; u < depth; u += 16) {
                const unit *of_a = a + row * a_row + u, *of_b = b + u * b_row + column;
                _tile_loadd(4, of_a, a_bytes);
                _tile_loadd(6, of_b, b_bytes);
                _tile_loadd(7, of_b + 16, b_bytes);
                _tile_loadd(5, of_a + 16 * a_row, a_bytes);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, upper, sum_bytes);
            _tile_stored(1, upper + 16, sum_bytes);
            _tile_stored(2, lower, sum_bytes);
            _tile_stored(3, lower + 16, sum_bytes);
        }
}

#else

INLINE void begin_products(void) {}
INLINE void end_products(void) {}

/* Sums kept in registers: of 32, 24 are sums, 4 a row of b and one a value of a; of AVX2's 16, 12, 2 and one. */
#if defined(__AVX512F__)
enum { BLOCK_VECTORS = 4, BLOCK_ROWS = 6 };
#else
enum { BLOCK_VECTORS = 2, BLOCK_ROWS = 6 };
#endif

INLINE void product_block(
    const int rows, const int vectors, int64_t depth, const unit *a, int64_t a_row, int64_t a_unit, const unit *b,
    int64_t b_row, float *sum, int64_t sum_row, int add)
{
    vec sums[BLOCK_ROWS][BLOCK_VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++)
            sums[r][c] = add ? vec_load(sum + r * sum_row + c * LANES) : vec_all(0.0f);
#pragma GCC unroll 1
    for (int64_t u = 0; u < depth; u++) {
        units columns[BLOCK_VECTORS];
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++)
            columns[c] = units_load(b + u * b_row + c * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            units value = units_all(a + r * a_row + u * a_unit);
#pragma GCC unroll 4
            for (int c = 0; c < vectors; c++)
                sums[r][c] = units_fma(value, columns[c], sums[r][c]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++)
            vec_store(sum + r * sum_row + c * LANES, sums[r][c]);
}

INLINE void product_strip(
    const int vectors, int64_t rows, int64_t depth, const unit *a, int64_t a_row, int64_t a_unit, const unit *b,
    int64_t b_row, float *sum, int64_t sum_row, int add)
{
    int64_t row = 0;
#define BLOCK(count) \
    product_block(count, vectors, depth, a + row * a_row, a_row, a_unit, b, b_row, sum + row * sum_row, sum_row, add)
    for (; row + BLOCK_ROWS <= rows; row += BLOCK_ROWS)
        BLOCK(BLOCK_ROWS);
    for (; row + 4 <= rows; row += 4)
        BLOCK(4);
    for (; row < rows; row += 2)
        BLOCK(2);
#undef BLOCK
}

/* rows and columns are multiples of 16; with add, to what is in sum. Inlined, so that strides become constants. */
INLINE void product(
    int64_t rows, int64_t columns, int64_t depth, const unit *a, int64_t a_row, int64_t a_unit, const unit *b,
    int64_t b_row, float *sum, int64_t sum_row, const int add)
{
    int64_t column = 0;
    for (; column + BLOCK_VECTORS * LANES <= columns; column += BLOCK_VECTORS * LANES)
        product_strip(BLOCK_VECTORS, rows, depth, a, a_row, a_unit, b + column, b_row, sum + column, sum_row, add);
    for (; column < columns; column += LANES)
        product_strip(1, rows, depth, a, a_row, a_unit, b + column, b_row, sum + column, sum_row, add);
}

#endif

/* scores[query][key] = sum over d: the queries' rows, the keys' columns. */
INLINE void product_scores(int64_t num_rows, int64_t dim, const unit *rows, const unit *columns, float *scores)
{
    product(num_rows, TILE, dim / PER_UNIT, rows, dim / PER_UNIT, 1, columns, TILE, scores, TILE, 0);
}

/* sum[query][d] += over keys: the weights' rows, one where each row of scores was, and the keys' cross. */
INLINE void product_over_keys(int64_t num_rows, int64_t dim, const unit *weights, const unit *cross, float *sum)
{
    product(num_rows, dim, TILE_UNITS, weights, TILE, 1, cross, dim, sum, dim, 1);
}

/* sum[d][key] += over queries: the queries turned, the weights' cross. */
INLINE void product_over_queries(int64_t dim, const unit *turned, const unit *weights, float *sum)
{
#if defined(UNIT_BFLOAT16)
    product(dim, TILE, TILE_UNITS, turned, TILE_UNITS, 1, weights, TILE, sum, TILE, 1);
#else
    product(dim, TILE, TILE_UNITS, turned, 1, dim, weights, TILE, sum, TILE, 1);
#endif
}

#endif
