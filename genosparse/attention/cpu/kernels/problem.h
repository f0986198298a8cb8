/* One call as native.py describes it: tensors, the numbers of the pattern, and memory to work in.
 *
 * All memory is the caller's. Heads of keys and values are numbered through the batch, and a call works on a slab of
 * them, [first_head, last_head): what is packed is packed for the slab alone, so that memory stays bounded.
 */
#ifndef GENOSPARSE_PROBLEM_H
#define GENOSPARSE_PROBLEM_H

#include <stdint.h>

enum { TILE = 64 }; /* positions of a tile of queries, and keys of a tile of keys */
enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

/* native.py has the same fields in the same order. */
struct problem {
    /* [B, H, N, D] with the strides below, in elements; the last dimension has stride 1. */
    const void *q, *k, *v, *grad;
    int64_t q_stride[3], k_stride[3], v_stride[3], grad_stride[3];
    const uint8_t *key_mask; /* [B, N], or null */
    /* Contiguous results. In the backward pass out and lse are read. */
    void *out, *dq, *dk, *dv;
    float *lse; /* natural log */

    int64_t batch, num_heads, num_kv_heads, length, head_dim, dtype;
    int64_t window;     /* reach in blocks, -1: off */
    int64_t num_global; /* positions */
    int64_t stride;     /* in blocks, 0: off */
    int64_t block_size, stagger, causal;
    double scale;

    /* Random and extra blocks: rectangles (query_low, query_high, key_low, key_high), each within one tile of queries
     * and one of keys, by tile of queries and by tile of keys; null where there are none. Strides of heads may be 0. */
    const int32_t *query_entries, *query_entry_first, *key_entries, *key_entry_first;
    int64_t query_entries_stride, key_entries_stride, entry_first_stride;

    int64_t first_head, last_head; /* the slab */
    int64_t num_grid_tiles;        /* tiles of neighbouring keys that are packed: all, or 0 where columns are all */
    int64_t num_column_tiles;      /* most of a head */
    int64_t num_splits;            /* shares of the keys that global rows are computed in */
    int64_t chunk_tiles;           /* tiles of queries whose gradients one thread computes, one after the other */
    int64_t num_slots;             /* sums of the columns' gradients */
    int64_t num_threads;

    /* [slab, grid tiles then column tiles, tile] */
    void *k_columns, *k_cross, *v_columns, *v_cross;
    uint64_t *visible, *is_column; /* a bit for each key of a packed tile */
    float *key_norm;               /* the largest of a packed tile, inf where its values are too large for weights
                                    * without a maximum; null in the backward pass */
    float *dk_sum, *dv_sum;               /* [slab, grid tiles, padded D, TILE] */
    float *dk_columns, *dv_columns;       /* [slots, slab, column tiles, padded D, TILE] */
    float *part, *part_lse;               /* [splits, slab, group, global rows, padded D], and without the last */
    char *scratch;                        /* [threads, scratch_size] */
    int64_t scratch_size;
};

typedef void (*work_function)(const struct problem *problem, int64_t item, char *scratch);

/* Call work for items 0 to count - 1, on as many threads as the problem says. What an item computes does not depend on
 * the thread that computes it. */
void genosparse_parallel(const struct problem *problem, int64_t count, work_function work);

#endif
