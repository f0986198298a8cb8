/* Forward: an online softmax over the tiles of keys that a tile of queries meets.
 *
 * Reads top-down: which rows, which tiles of keys, then for each tile scores, mask, running maximum, rescale,
 * accumulate. Global rows, which see every key, are split over the keys, and their parts are merged by lse.
 */
#include <math.h>

#include "packing.h"

#define LOG2_E 1.4426950408889634
#define LN_2 0.6931471805599453

/* One thread's memory. */
struct forward_scratch {
    unit queries[TILE * MAX_DIM];
    float scores[TILE * TILE];
    float out[TILE * MAX_DIM];
#if defined(UNIT_BFLOAT16)
    unit weights[TILE * TILE_UNITS];
#endif
    float row_max[TILE], row_sum[TILE]; /* the maximum of scores in base 2 */
    struct query_tile plan;
    struct visit visit;
};

int64_t EXPORT(genosparse_forward_scratch_)(void);
int64_t EXPORT(genosparse_forward_scratch_)(void) { return sizeof(struct forward_scratch); }
void EXPORT(genosparse_forward_)(const struct problem *problem);

/* Scale, mask and exponentiate the scores; move the running maximum, sum and out along. */
static void add_scores(struct forward_scratch *s, float scale_log2, const uint64_t *mask, int64_t dim)
{
    vec scale = vec_all(scale_log2);
#if defined(UNIT_BFLOAT16)
    unit *weights = s->weights;
#endif
    for (int row = 0; row < TILE; row++) {
        float *scores = s->scores + row * TILE;
        vec largest = vec_all(-INFINITY);
        for (int i = 0; i < VECTORS; i++) {
            vec x = vec_load(scores + i * LANES);
            if (mask)
                x = vec_choose(lanes_of(mask[row], i), x, vec_all(-INFINITY));
            largest = vec_max(x, largest);
        }
        float tile_max = vec_largest(largest) * scale_log2, row_max = s->row_max[row];
        if (tile_max > row_max) {
            /* Most tiles after the first few do not move the maximum, and there is nothing to rescale. */
            float by = exp2f(row_max - tile_max);
            s->row_max[row] = row_max = tile_max;
            s->row_sum[row] *= by;
            for (int64_t d = 0; d < dim; d += LANES)
                vec_store(s->out + row * dim + d, vec_mul(vec_load(s->out + row * dim + d), vec_all(by)));
        }
        vec sum = vec_all(0.0f), shift = vec_all(-row_max);
        vec p[VECTORS];
        for (int i = 0; i < VECTORS; i++) {
            p[i] = vec_exp2(vec_fma(vec_load(scores + i * LANES), scale, shift));
            if (mask)
                p[i] = vec_keep(lanes_of(mask[row], i), p[i]);
            sum = vec_add(sum, p[i]);
        }
        s->row_sum[row] += vec_sum(sum);
#if defined(UNIT_BFLOAT16)
        for (int i = 0; i < VECTORS; i += 2)
            units_store_row(weights + row * TILE_UNITS + i / 2 * LANES, p[i], p[i + 1]);
#else
        for (int i = 0; i < VECTORS; i++)
            vec_store(scores + i * LANES, p[i]);
#endif
    }
}

static void add_tile(const struct problem *problem, struct forward_scratch *s, int64_t head, int64_t dim)
{
    int64_t at = packed_at(problem, head, s->visit.tile, dim);
    product_scores(dim, s->queries, (const unit *)problem->k_columns + at, s->scores);
    add_scores(s, (float)(fabs(problem->scale) * LOG2_E), s->visit.masked ? s->visit.mask : 0, dim);
#if defined(UNIT_BFLOAT16)
    const unit *weights = s->weights;
#else
    const unit *weights = s->scores;
#endif
    product_over_keys(dim, weights, (const unit *)problem->v_cross + at, s->out);
}

/* Rows [first, last] of a tile of queries; others are zeros. */
static void start_rows(const struct problem *problem, struct forward_scratch *s, int64_t head, int64_t query_head,
                       int64_t dim)
{
    int64_t batch = head / problem->num_kv_heads;
    for (int row = 0; row < TILE; row++) {
        int64_t query = s->plan.start + row;
        int is_row = query >= s->plan.first && query <= s->plan.last;
        unit *to = s->queries + row * dim / PER_UNIT;
        pack_row(problem, is_row ? row_of(problem->q, problem->q_stride, batch, query_head, query, problem->dtype) : 0,
                 dim, to);
        /* The maximum of scaled scores is the scaled maximum of scores where the scale is positive. */
        if (problem->scale < 0)
            for (int64_t u = 0; u < dim / PER_UNIT; u++)
#if defined(UNIT_BFLOAT16)
                to[u] ^= 0x80008000;
#else
                to[u] = -to[u];
#endif
        s->row_max[row] = -3.4028234663852886e38f; /* finite, so that differences from it are never NaN */
        s->row_sum[row] = 0.0f;
    }
    memset(s->out, 0, TILE * dim * sizeof(float));
}

/* Divide a row of out by its sum. Returns its lse; a row without keys gives 0 and -inf. */
static float finish_row(struct forward_scratch *s, int row, int64_t dim)
{
    float sum = s->row_sum[row];
    vec by = vec_all(sum == 0.0f ? 1.0f : 1.0f / sum);
    for (int64_t d = 0; d < dim; d += LANES)
        vec_store(s->out + row * dim + d, vec_mul(vec_load(s->out + row * dim + d), by));
    return sum == 0.0f ? -INFINITY : (float)((s->row_max[row] + log2((double)sum)) * LN_2);
}

INLINE void write_out(const struct problem *problem, const float *from, float lse, int64_t batch, int64_t query_head,
                      int64_t query)
{
    int64_t at = (batch * problem->num_heads + query_head) * problem->length + query;
    write_row(from, problem->dtype, problem->head_dim,
              (char *)problem->out + at * problem->head_dim * size_of(problem->dtype));
    problem->lse[at] = lse;
}

/* Item: a tile of queries of a head of the slab, for every query head that reads it. */
static void attend_tile(const struct problem *problem, int64_t item, char *scratch)
{
    struct forward_scratch *s = (struct forward_scratch *)scratch;
    int64_t num_tiles = tiles_of(problem->length), in_slab = item / num_tiles;
    int64_t head = problem->first_head + in_slab, tile = item % num_tiles;
    if (problem->causal)
        tile = num_tiles - 1 - tile; /* the last queries meet the most keys: they start first */
    int64_t batch = head / problem->num_kv_heads, kv_head = head % problem->num_kv_heads;
    int64_t dim = padded_dim(problem->head_dim), group = group_size(problem);
    struct rules rules = rules_of(problem, kv_head);
    plan_queries(&rules, tile, &s->plan);
    if (s->plan.first > s->plan.last)
        return;
    const uint64_t *visible = problem->visible + in_slab * num_packed_tiles(problem);
    const uint64_t *is_column = problem->is_column + in_slab * num_packed_tiles(problem);
    for (int64_t query_head = kv_head * group; query_head < (kv_head + 1) * group; query_head++) {
        start_rows(problem, s, head, query_head, dim);
        struct walk walk = walk_keys(problem, &rules, &s->plan, visible, is_column);
        while (walk_next(&walk, kv_head, &s->visit))
            add_tile(problem, s, head, dim);
        for (int64_t query = s->plan.first; query <= s->plan.last; query++) {
            int row = (int)(query - s->plan.start);
            float lse = finish_row(s, row, dim);
            write_out(problem, s->out + row * dim, lse, batch, query_head, query);
        }
    }
}

/* --- global rows --- */

/* Place of a row in parts. */
INLINE int64_t part_at(const struct problem *problem, int64_t split, int64_t in_slab, int64_t in_group, int64_t row)
{
    int64_t heads = slab_size(problem) * group_size(problem);
    return (split * heads + in_slab * group_size(problem) + in_group) * num_global_rows(problem) + row;
}

/* Item: global rows of a head of the slab over one share of the keys. */
static void attend_global(const struct problem *problem, int64_t item, char *scratch)
{
    struct forward_scratch *s = (struct forward_scratch *)scratch;
    int64_t in_slab = item / problem->num_splits, split = item % problem->num_splits;
    int64_t head = problem->first_head + in_slab, kv_head = head % problem->num_kv_heads;
    int64_t dim = padded_dim(problem->head_dim), group = group_size(problem), num_rows = num_global_rows(problem);
    int64_t share = (problem->num_grid_tiles + problem->num_splits - 1) / problem->num_splits;
    int64_t end = least((split + 1) * share, problem->num_grid_tiles);
    for (int64_t in_group = 0; in_group < group; in_group++)
        for (int64_t start = 0; start < num_rows; start += TILE) {
            s->plan.start = s->plan.first = start;
            s->plan.last = least(start + TILE, num_rows) - 1;
            start_rows(problem, s, head, kv_head * group + in_group, dim);
            for (int64_t tile = split * share; tile < end; tile++) {
                s->visit.tile = tile;
                s->visit.masked = 0;
                hide_keys(&s->visit, problem->visible[in_slab * num_packed_tiles(problem) + tile]);
                add_tile(problem, s, head, dim);
            }
            for (int64_t row = start; row <= s->plan.last; row++) {
                int64_t at = part_at(problem, split, in_slab, in_group, row);
                problem->part_lse[at] = finish_row(s, (int)(row - start), dim);
                memcpy(problem->part + at * dim, s->out + (row - start) * dim, dim * sizeof(float));
            }
        }
}

/* Item: a head of the slab, whose parts are merged in the order of the splits. */
static void merge_global(const struct problem *problem, int64_t in_slab, char *scratch)
{
    float *out = ((struct forward_scratch *)scratch)->out;
    int64_t head = problem->first_head + in_slab, kv_head = head % problem->num_kv_heads;
    int64_t dim = padded_dim(problem->head_dim), group = group_size(problem), num_rows = num_global_rows(problem);
    for (int64_t in_group = 0; in_group < group; in_group++)
        for (int64_t row = 0; row < num_rows; row++) {
            double largest = -INFINITY, sum = 0.0;
            for (int64_t split = 0; split < problem->num_splits; split++)
                largest = fmax(largest, problem->part_lse[part_at(problem, split, in_slab, in_group, row)]);
            for (int64_t split = 0; split < problem->num_splits && largest > -INFINITY; split++)
                sum += exp(problem->part_lse[part_at(problem, split, in_slab, in_group, row)] - largest);
            double lse = largest + log(sum);
            memset(out, 0, dim * sizeof(float));
            for (int64_t split = 0; split < problem->num_splits && largest > -INFINITY; split++) {
                int64_t at = part_at(problem, split, in_slab, in_group, row);
                float share = (float)exp(problem->part_lse[at] - lse);
                for (int64_t d = 0; d < dim; d++)
                    out[d] += share * problem->part[at * dim + d];
            }
            write_out(problem, out, largest > -INFINITY ? (float)lse : -INFINITY, head / problem->num_kv_heads,
                      kv_head * group + in_group, row);
        }
}

void EXPORT(genosparse_forward_)(const struct problem *problem)
{
    pack_keys(problem);
    genosparse_parallel(problem, slab_size(problem) * tiles_of(problem->length), attend_tile);
    if (num_global_rows(problem)) {
        genosparse_parallel(problem, slab_size(problem) * problem->num_splits, attend_global);
        genosparse_parallel(problem, slab_size(problem), merge_global);
    }
}
