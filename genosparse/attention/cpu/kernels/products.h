/* The one matrix product that all kernels are made of:
 *
 *     sum[row][column] (+)= over u: a(row, u) * b[u][column],
 *
 * where a is broadcast unit by unit and b read as rows of units. A tile's operands come in three forms:
 *
 *     rows     [TILE][D / PER_UNIT]: a unit has neighbours of a row; a, by row
 *     columns  [D / PER_UNIT][TILE]: the same turned; b, so that lanes are the tile's positions
 *     cross    [TILE / PER_UNIT][D]: a unit has the values of neighbouring rows; b, so that lanes are dimensions, or a
 *              turned (CROSS_ROW, CROSS_UNIT)
 *
 * With float32 units rows and cross are the same.
 */
#ifndef GENOSPARSE_PRODUCTS_H
#define GENOSPARSE_PRODUCTS_H

#include "vectors.h"

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

/* scores[query][key] = sum over d: the queries' rows, the keys' columns. */
INLINE void product_scores(int64_t dim, const unit *rows, const unit *columns, float *scores)
{
    product(TILE, TILE, dim / PER_UNIT, rows, dim / PER_UNIT, 1, columns, TILE, scores, TILE, 0);
}

/* sum[query][d] += over keys: the weights' rows, the keys' cross. */
INLINE void product_over_keys(int64_t dim, const unit *weights, const unit *cross, float *sum)
{
    product(TILE, dim, TILE_UNITS, weights, TILE_UNITS, 1, cross, dim, sum, dim, 1);
}

/* sum[d][key] += over queries: the queries' cross turned, the weights' cross. */
INLINE void product_over_queries(int64_t dim, const unit *cross, const unit *weights, float *sum)
{
    product(dim, TILE, TILE_UNITS, cross, 1, dim, weights, TILE, sum, TILE, 1);
}

#endif
