/* Backward: the gradients of q, k and v in one walk over the tiles of the forward pass.
 *
 * The weights are computed again from the scores and the lse, p = exp(score - lse), and then, with
 * delta = rowsum(out * grad_out),
 *
 *     dv = p^T grad_out,  ds = p * (grad_out v^T - delta),  dq = scale * ds k,  dk = scale * ds^T q.
 *
 * Where the GPU's kernels make p and ds twice, once for dq and once for dk and dv, a core here makes them once: seven
 * products become five. What makes that possible without atomic additions is the order of the work. A chunk is a run of
 * tiles of queries, at least twice as long as the window's reach. The chunks of even number touch disjoint keys, and so
 * do those of odd number: one after the other, each kind runs in parallel, straight into the sums of dk and dv.
 * Columns, which every query sees, have a sum of their own for each pair of chunks, and these are added up in order.
 * Random and extra blocks give dq in the walk, and dk and dv from a table by tile of keys. Chunks, sums and their order
 * follow from the problem alone: results are the same for any number of threads and from run to run.
 *
 * Sums of dk and dv lie turned, [d][key], as their products make them.
 */
#include <math.h>

#include "packing.h"

/* One thread's memory. */
struct backward_scratch {
    unit queries[TILE * MAX_DIM], grads[TILE * MAX_DIM]; /* rows */
#if defined(UNIT_BFLOAT16)
    unit queries_turned[TILE * MAX_DIM], grads_turned[TILE * MAX_DIM];
    unit weights_cross[TILE_UNITS * TILE], grad_scores_cross[TILE_UNITS * TILE];
#endif
    float scores[TILE * TILE], grad_weights[TILE * TILE];
    float dq[TILE * MAX_DIM];
    float lse2[TILE], delta[TILE]; /* lse in base 2; inf where there is no row or it has no key, so that weights are 0 */
    struct query_tile plan;
    struct visit visit;
};

/* The rows of pack_tile are in the same memory. */
_Static_assert(sizeof(struct backward_scratch) >= TILE * MAX_DIM * sizeof(unit), "a tile of rows fits");

int64_t EXPORT(genosparse_backward_scratch_)(void);
int64_t EXPORT(genosparse_backward_scratch_)(void) { return sizeof(struct backward_scratch); }
void EXPORT(genosparse_backward_)(const struct problem *problem);

/* Rows [first, last] of the plan's tile; others are zeros. */
static void start_rows(const struct problem *problem, struct backward_scratch *s, int64_t head, int64_t query_head,
                       int64_t dim)
{
    int64_t batch = head / problem->num_kv_heads, head_dim = problem->head_dim;
    for (int row = 0; row < TILE; row++) {
        int64_t query = s->plan.start + row;
        int is_row = query >= s->plan.first && query <= s->plan.last;
        const char *q = 0, *grad = 0;
        s->lse2[row] = INFINITY;
        s->delta[row] = 0.0f;
        if (is_row) {
            int64_t at = (batch * problem->num_heads + query_head) * problem->length + query;
            float wide[2][MAX_DIM] = {{0}};
            q = row_of(problem->q, problem->q_stride, batch, query_head, query, problem->dtype);
            grad = row_of(problem->grad, problem->grad_stride, batch, query_head, query, problem->dtype);
            read_row(grad, problem->dtype, head_dim, wide[0]);
            read_row((const char *)problem->out + at * head_dim * size_of(problem->dtype), problem->dtype, head_dim,
                     wide[1]);
            vec delta = vec_all(0.0f);
            for (int64_t d = 0; d < head_dim; d += LANES)
                delta = vec_fma(vec_load(wide[0] + d), vec_load(wide[1] + d), delta);
            s->delta[row] = vec_sum(delta);
            if (problem->lse[at] != -INFINITY)
                s->lse2[row] = (float)(problem->lse[at] * LOG2_E);
        }
        pack_row(problem, q, dim, s->queries + row * dim / PER_UNIT);
        pack_row(problem, grad, dim, s->grads + row * dim / PER_UNIT);
    }
#if defined(UNIT_BFLOAT16)
    turn_values(s->queries, dim, s->queries_turned);
    turn_values(s->grads, dim, s->grads_turned);
#endif
}

/* Weights from scores, and the gradients of scores from those of weights, in the forms that the products want. */
static void weigh(struct backward_scratch *s, float scale_log2, const uint64_t *mask)
{
    vec scale = vec_all(scale_log2);
#if defined(UNIT_BFLOAT16)
    for (int row = 0; row < TILE; row += 2)
        for (int i = 0; i < VECTORS; i++) {
            vec p[2], ds[2];
            for (int of = 0; of < 2; of++) {
                int64_t at = (row + of) * TILE + i * LANES;
                p[of] = vec_exp2(vec_fma(vec_load(s->scores + at), scale, vec_all(-s->lse2[row + of])));
                if (mask)
                    p[of] = vec_keep(lanes_of(mask[row + of], i), p[of]);
                ds[of] = vec_mul(p[of], vec_sub(vec_load(s->grad_weights + at), vec_all(s->delta[row + of])));
                vec_store(s->grad_weights + at, ds[of]);
            }
            units_store_cross(s->weights_cross + row / 2 * TILE + i * LANES, p[0], p[1]);
            units_store_cross(s->grad_scores_cross + row / 2 * TILE + i * LANES, ds[0], ds[1]);
            if (i % 2)
                for (int of = 0; of < 2; of++) {
                    const float *low = s->grad_weights + (row + of) * TILE + (i - 1) * LANES;
                    units_store_row((unit *)s->scores + (row + of) * TILE + i / 2 * LANES, vec_load(low),
                                    ds[of]);
                }
        }
#else
    for (int row = 0; row < TILE; row++)
        for (int i = 0; i < VECTORS; i++) {
            int64_t at = row * TILE + i * LANES;
            vec p = vec_exp2(vec_fma(vec_load(s->scores + at), scale, vec_all(-s->lse2[row])));
            if (mask)
                p = vec_keep(lanes_of(mask[row], i), p);
            vec_store(s->scores + at, p);
            vec_store(s->grad_weights + at, vec_mul(p, vec_sub(vec_load(s->grad_weights + at),
                                                               vec_all(s->delta[row]))));
        }
#endif
}

/* Add what a tile of queries and one of keys give each other; sums that are null are left out. */
static void add_tile(const struct problem *problem, struct backward_scratch *s, int64_t head, int64_t dim, float *dq,
                     float *dk, float *dv)
{
    int64_t at = packed_at(problem, head, s->visit.tile, dim);
    product_scores(TILE, dim, s->queries, (const unit *)problem->k_columns + at, s->scores);
    product_scores(TILE, dim, s->grads, (const unit *)problem->v_columns + at, s->grad_weights);
    weigh(s, (float)(problem->scale * LOG2_E), s->visit.masked ? s->visit.mask : 0);
#if defined(UNIT_BFLOAT16)
    const unit *queries = s->queries_turned, *grads = s->grads_turned, *weights = s->weights_cross;
    const unit *grad_scores_rows = (const unit *)s->scores, *grad_scores_cross = s->grad_scores_cross;
#else
    const unit *queries = s->queries, *grads = s->grads, *weights = s->scores;
    const unit *grad_scores_rows = s->grad_weights, *grad_scores_cross = s->grad_weights;
#endif
    if (dq)
        product_over_keys(TILE, dim, grad_scores_rows, (const unit *)problem->k_cross + at, dq);
    if (dk) {
        product_over_queries(dim, queries, grad_scores_cross, dk);
        product_over_queries(dim, grads, weights, dv);
    }
}

/* Where the sums of a tile of keys lie, of dk and dv alike: on the grid, or those of the columns in one slot. */
INLINE int64_t grid_sum_at(const struct problem *problem, int64_t in_slab, int64_t tile, int64_t dim)
{
    return (in_slab * problem->num_grid_tiles + tile) * dim * TILE;
}
INLINE int64_t column_sum_at(const struct problem *problem, int64_t slot, int64_t in_slab, int64_t column_tile,
                             int64_t dim)
{
    return ((slot * slab_size(problem) + in_slab) * problem->num_column_tiles + column_tile) * dim * TILE;
}

INLINE void write_dq(const struct problem *problem, float *row, int64_t dim, int64_t batch, int64_t query_head,
                     int64_t query)
{
    int64_t at = (batch * problem->num_heads + query_head) * problem->length + query;
    for (int64_t d = 0; d < dim; d++)
        row[d] *= (float)problem->scale;
    write_row(row, problem->dtype, problem->head_dim,
              (char *)problem->dq + at * problem->head_dim * size_of(problem->dtype));
}

/* The chunk of a number, of a head of the slab. */
static void add_chunk(const struct problem *problem, int64_t in_slab, int64_t chunk, char *scratch)
{
    struct backward_scratch *s = (struct backward_scratch *)scratch;
    int64_t head = problem->first_head + in_slab, slot = chunk / 2;
    int64_t batch = head / problem->num_kv_heads, kv_head = head % problem->num_kv_heads;
    int64_t dim = padded_dim(problem->head_dim), group = group_size(problem);
    struct rules rules = rules_of(problem, kv_head);
    const uint64_t *visible = problem->visible + in_slab * num_packed_tiles(problem);
    const uint64_t *is_column = problem->is_column + in_slab * num_packed_tiles(problem);
    int64_t end = least((chunk + 1) * problem->chunk_tiles, tiles_of(problem->length));
    begin_products();
    for (int64_t tile = chunk * problem->chunk_tiles; tile < end; tile++) {
        plan_queries(&rules, tile, &s->plan);
        if (s->plan.first > s->plan.last)
            continue;
        for (int64_t query_head = kv_head * group; query_head < (kv_head + 1) * group; query_head++) {
            start_rows(problem, s, head, query_head, dim);
            memset(s->dq, 0, TILE * dim * sizeof(float));
            struct walk walk = walk_keys(problem, &rules, &s->plan, visible, is_column);
            while (walk_next(&walk, kv_head, &s->visit)) {
                float *dk = 0, *dv = 0;
                if (walk.stage == WINDOW) {
                    int64_t at = grid_sum_at(problem, in_slab, s->visit.tile, dim);
                    dk = problem->dk_sum + at;
                    dv = problem->dv_sum + at;
                } else if (walk.stage == COLUMNS) {
                    int64_t column_tile = s->visit.tile - problem->num_grid_tiles;
                    int64_t at = column_sum_at(problem, slot, in_slab, column_tile, dim);
                    dk = problem->dk_columns + at;
                    dv = problem->dv_columns + at;
                }
                add_tile(problem, s, head, dim, s->dq, dk, dv);
            }
            for (int64_t query = s->plan.first; query <= s->plan.last; query++)
                write_dq(problem, s->dq + (query - s->plan.start) * dim, dim, batch, query_head, query);
        }
    }
    end_products();
}

INLINE int64_t num_chunks(const struct problem *problem)
{
    return (tiles_of(problem->length) + problem->chunk_tiles - 1) / problem->chunk_tiles;
}

/* Item: a chunk of even number of a head of the slab. */
static void add_even_chunk(const struct problem *problem, int64_t item, char *scratch)
{
    int64_t count = (num_chunks(problem) + 1) / 2;
    add_chunk(problem, item / count, item % count * 2, scratch);
}

static void add_odd_chunk(const struct problem *problem, int64_t item, char *scratch)
{
    int64_t count = num_chunks(problem) / 2;
    add_chunk(problem, item / count, item % count * 2 + 1, scratch);
}

/* --- global rows --- */

/* Item: global rows of a head of the slab over one share of the keys, whose sums are this item's alone. */
static void add_global(const struct problem *problem, int64_t item, char *scratch)
{
    struct backward_scratch *s = (struct backward_scratch *)scratch;
    int64_t in_slab = item / problem->num_splits, split = item % problem->num_splits;
    int64_t head = problem->first_head + in_slab, kv_head = head % problem->num_kv_heads;
    int64_t dim = padded_dim(problem->head_dim), group = group_size(problem), num_rows = num_global_rows(problem);
    int64_t share = (problem->num_grid_tiles + problem->num_splits - 1) / problem->num_splits;
    int64_t end = least((split + 1) * share, problem->num_grid_tiles);
    begin_products();
    for (int64_t in_group = 0; in_group < group; in_group++)
        for (int64_t start = 0; start < num_rows; start += TILE) {
            s->plan.start = s->plan.first = start;
            s->plan.last = least(start + TILE, num_rows) - 1;
            start_rows(problem, s, head, kv_head * group + in_group, dim);
            memset(s->dq, 0, TILE * dim * sizeof(float));
            for (int64_t tile = split * share; tile < end; tile++) {
                int64_t at = grid_sum_at(problem, in_slab, tile, dim);
                s->visit.tile = tile;
                s->visit.masked = 0;
                hide_keys(&s->visit, problem->visible[in_slab * num_packed_tiles(problem) + tile]);
                add_tile(problem, s, head, dim, s->dq, problem->dk_sum + at, problem->dv_sum + at);
            }
            memcpy(problem->part + part_at(problem, split, in_slab, in_group, start) * dim, s->dq,
                   (s->plan.last - start + 1) * dim * sizeof(float));
        }
    end_products();
}

/* Item: a head of the slab, whose parts of dq are added in the order of the splits. */
static void merge_global(const struct problem *problem, int64_t in_slab, char *scratch)
{
    float *dq = ((struct backward_scratch *)scratch)->dq;
    int64_t head = problem->first_head + in_slab, kv_head = head % problem->num_kv_heads;
    int64_t dim = padded_dim(problem->head_dim), group = group_size(problem), num_rows = num_global_rows(problem);
    for (int64_t in_group = 0; in_group < group; in_group++)
        for (int64_t row = 0; row < num_rows; row++) {
            memset(dq, 0, dim * sizeof(float));
            for (int64_t split = 0; split < problem->num_splits; split++) {
                const float *part = problem->part + part_at(problem, split, in_slab, in_group, row) * dim;
                for (int64_t d = 0; d < dim; d++)
                    dq[d] += part[d];
            }
            write_dq(problem, dq, dim, head / problem->num_kv_heads, kv_head * group + in_group, row);
        }
}

/* --- random and extra blocks --- */

/* Item: a tile of keys of a head of the slab, and the entries of its table. */
static void add_entries(const struct problem *problem, int64_t item, char *scratch)
{
    struct backward_scratch *s = (struct backward_scratch *)scratch;
    int64_t in_slab = item / problem->num_grid_tiles, tile = item % problem->num_grid_tiles;
    int64_t head = problem->first_head + in_slab, kv_head = head % problem->num_kv_heads;
    int64_t dim = padded_dim(problem->head_dim), group = group_size(problem);
    int64_t packed = in_slab * num_packed_tiles(problem) + tile, at = grid_sum_at(problem, in_slab, tile, dim);
    struct rules rules = rules_of(problem, kv_head);
    const int32_t *first = problem->key_entry_first + kv_head * problem->entry_first_stride;
    const int32_t *entries = problem->key_entries + kv_head * problem->key_entries_stride;
    begin_products();
    for (int64_t number = first[tile]; number < first[tile + 1]; number++) {
        const int32_t *entry = entries + 4 * number;
        plan_queries(&rules, entry[0] / TILE, &s->plan);
        s->plan.first = entry[0];
        s->plan.last = entry[1] - 1;
        s->visit.tile = tile;
        visit_entry(&rules, &s->plan, entry, problem->is_column[packed], &s->visit);
        hide_keys(&s->visit, problem->visible[packed]);
        for (int64_t query_head = kv_head * group; query_head < (kv_head + 1) * group; query_head++) {
            start_rows(problem, s, head, query_head, dim);
            add_tile(problem, s, head, dim, 0, problem->dk_sum + at, problem->dv_sum + at);
        }
    }
    end_products();
}

/* --- the sums --- */

/* Item: a tile of columns of a head of the slab: add up its slots, in order, into the first. */
static void add_slots(const struct problem *problem, int64_t item, char *scratch)
{
    (void)scratch;
    int64_t in_slab = item / problem->num_column_tiles, column_tile = item % problem->num_column_tiles;
    int64_t dim = padded_dim(problem->head_dim), to = column_sum_at(problem, 0, in_slab, column_tile, dim);
    for (int64_t slot = 1; slot < problem->num_slots; slot++) {
        int64_t from = column_sum_at(problem, slot, in_slab, column_tile, dim);
        for (int64_t i = 0; i < dim * TILE; i++) {
            problem->dk_columns[to + i] += problem->dk_columns[from + i];
            problem->dv_columns[to + i] += problem->dv_columns[from + i];
        }
    }
}

/* Item: 64 neighbouring keys of a head of the slab: turn their sums, add those of their columns, and write. */
static void finish_keys(const struct problem *problem, int64_t item, char *scratch)
{
    float *row = ((struct backward_scratch *)scratch)->dq;
    int64_t num_tiles = tiles_of(problem->length), in_slab = item / num_tiles, tile = item % num_tiles;
    int64_t head = problem->first_head + in_slab, dim = padded_dim(problem->head_dim);
    struct rules rules = rules_of(problem, head % problem->num_kv_heads);
    struct {
        const float *grid, *columns;
        void *out;
        float scale;
    } sides[2] = {
        {problem->dk_sum, problem->dk_columns, problem->dk, (float)problem->scale},
        {problem->dv_sum, problem->dv_columns, problem->dv, 1.0f},
    };
    for (int64_t key = tile * TILE; key < least((tile + 1) * TILE, problem->length); key++) {
        int64_t column = is_column(&rules, key) ? columns_below(&rules, key) : -1;
        for (int side = 0; side < 2; side++) {
            memset(row, 0, dim * sizeof(float));
            if (problem->num_grid_tiles) {
                const float *from = sides[side].grid + grid_sum_at(problem, in_slab, tile, dim) + key % TILE;
                for (int64_t d = 0; d < dim; d++)
                    row[d] = from[d * TILE];
            }
            if (column >= 0) {
                const float *from = sides[side].columns + column_sum_at(problem, 0, in_slab, column / TILE, dim);
                for (int64_t d = 0; d < dim; d++)
                    row[d] += from[d * TILE + column % TILE];
            }
            for (int64_t d = 0; d < dim; d++)
                row[d] *= sides[side].scale;
            write_row(row, problem->dtype, problem->head_dim, (char *)sides[side].out
                      + (head * problem->length + key) * problem->head_dim * size_of(problem->dtype));
        }
    }
}

void EXPORT(genosparse_backward_)(const struct problem *problem)
{
    int64_t slab = slab_size(problem);
    pack_keys(problem);
    genosparse_parallel(problem, slab * ((num_chunks(problem) + 1) / 2), add_even_chunk);
    genosparse_parallel(problem, slab * (num_chunks(problem) / 2), add_odd_chunk);
    if (num_global_rows(problem)) {
        genosparse_parallel(problem, slab * problem->num_splits, add_global);
        genosparse_parallel(problem, slab, merge_global);
    }
    if (problem->key_entries)
        genosparse_parallel(problem, slab * problem->num_grid_tiles, add_entries);
    genosparse_parallel(problem, slab * problem->num_column_tiles, add_slots);
    genosparse_parallel(problem, slab * tiles_of(problem->length), finish_keys);
}
