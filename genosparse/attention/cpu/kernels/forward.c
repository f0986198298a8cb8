/* Forward: an online softmax over the tiles of keys that some queries meet.
 *
 * Reads top-down: which rows, which tiles of keys, then for each tile scores, mask, running maximum, rescale,
 * accumulate. Global rows, which see every key, are split over the keys, and their parts are merged by lse.
 *
 * Queries go by ROWS, half a tile: their sums and scores then stay in the first cache, with the tile of keys and values
 * that passes. One after the other scores are multiplied, weighed and added: AMX takes one of the two ports that vectors
 * have, so that there is little to win by doing both at once, and caches to lose.
 */
#include <math.h>

#include "packing.h"

#define LN_2 0.6931471805599453

enum { ROWS = 32 };

/* One thread's memory. */
struct forward_scratch {
    unit queries[ROWS * MAX_DIM];
    float scores[ROWS * TILE]; /* then weights: a row of units where the row of scores was */
    float out[ROWS * MAX_DIM];
    float row_max[ROWS];        /* of scores in base 2, or less by HEADROOM at the most; 0 while bounded */
    float row_sum[ROWS][LANES]; /* a sum for each lane */
    float largest_norm;         /* of the queries, times the scale in base 2 */
    int bounded;                /* no score so far could pass BOUND */
    int64_t first_row;          /* of the tile */
    struct query_tile plan;
    struct visit visit;
};

/* The rows of pack_tile are in the same memory. */
_Static_assert(sizeof(struct forward_scratch) >= TILE * MAX_DIM * sizeof(unit), "a tile of rows fits");

int64_t EXPORT(genosparse_forward_scratch_)(void);
int64_t EXPORT(genosparse_forward_scratch_)(void) { return sizeof(struct forward_scratch); }
void EXPORT(genosparse_forward_)(const struct problem *problem);

/* By how much scores may pass the maximum that a row has, in base 2, before the row is scaled anew: sums have room for it,
 * and most tiles after the first few then have nothing to rescale. */
#define HEADROOM 8.0f

/* No score is larger than the product of the norms of its query and its key. While that is at most BOUND, in base 2, no
 * maximum is looked for: 2^score has its full precision from 2^-BOUND to 2^BOUND, and sums of them have room; so have those
 * of values, of which MOST_VALUE is the largest that a bounded tile has. */
#define BOUND 60.0f

/* Take a tile's maximum for a row's, and scale the row's sums by what that changes. */
static void raise_max(struct forward_scratch *s, int64_t row, float tile_max, int64_t dim)
{
    if (tile_max <= s->row_max[row])
        return;
    vec by = vec_all(exp2f(s->row_max[row] - tile_max));
    s->row_max[row] = tile_max;
    vec_store(s->row_sum[row], vec_mul(vec_load(s->row_sum[row]), by));
    for (int64_t d = 0; d < dim; d += LANES)
        vec_store(s->out + row * dim + d, vec_mul(vec_load(s->out + row * dim + d), by));
}

/* Scale, mask and exponentiate the scores; move the running maximum, sum and out along. */
INLINE void weigh(struct forward_scratch *s, float scale_log2, const uint64_t *mask, int64_t dim)
{
    vec scale = vec_all(scale_log2);
    for (int64_t row = 0; row < ROWS; row++) {
        float *scores = s->scores + row * TILE;
        vec x[VECTORS], largest = vec_all(-INFINITY);
        for (int i = 0; i < VECTORS; i++) {
            x[i] = vec_load(scores + i * LANES);
            if (mask)
                x[i] = vec_choose(lanes_of(mask[row], i), x[i], vec_all(-INFINITY));
            largest = vec_max(x[i], largest);
        }
        if (vec_any_above(vec_mul(largest, scale), vec_all(s->row_max[row] + HEADROOM)))
            raise_max(s, row, vec_largest(largest) * scale_log2, dim);
        vec sum = vec_load(s->row_sum[row]), shift = vec_all(-s->row_max[row]);
        for (int i = 0; i < VECTORS; i++) {
            x[i] = vec_exp2(vec_fma(x[i], scale, shift));
            if (mask)
                x[i] = vec_keep(lanes_of(mask[row], i), x[i]);
            sum = vec_add(sum, x[i]);
        }
        vec_store(s->row_sum[row], sum);
#if defined(UNIT_BFLOAT16)
        for (int i = 0; i < VECTORS; i += 2)
            units_store_packed((unit *)scores + i / 2 * LANES, x[i], x[i + 1]);
#else
        for (int i = 0; i < VECTORS; i++)
            vec_store(scores + i * LANES, x[i]);
#endif
    }
}

/* The same where every score is bounded. */
INLINE void weigh_bounded(struct forward_scratch *s, float scale_log2, const uint64_t *mask)
{
    vec scale = vec_all(scale_log2);
    for (int64_t row = 0; row < ROWS; row++) {
        float *scores = s->scores + row * TILE;
        vec sum = vec_load(s->row_sum[row]);
#if defined(UNIT_BFLOAT16)
        for (int i = 0; i < VECTORS; i += 2) {
            lanes low = mask ? lanes_of(mask[row], i) : ALL_LANES, high = mask ? lanes_of(mask[row], i + 1) : ALL_LANES;
            units weights = units_exp2(vec_mul(vec_load(scores + i * LANES), scale), low,
                                       vec_mul(vec_load(scores + (i + 1) * LANES), scale), high);
            sum = vec_add(vec_add(sum, units_lower(weights)), units_upper(weights));
            units_store((unit *)scores + i / 2 * LANES, weights);
        }
#else
        for (int i = 0; i < VECTORS; i++) {
            vec x = vec_exp2(vec_mul(vec_load(scores + i * LANES), scale));
            if (mask)
                x = vec_keep(lanes_of(mask[row], i), x);
            sum = vec_add(sum, x);
            vec_store(scores + i * LANES, x);
        }
#endif
        vec_store(s->row_sum[row], sum);
    }
}

/* From here on rows have a maximum: those with keys keep 0, which is BOUND too much or too little at the most. */
static void stop_bounding(struct forward_scratch *s)
{
    s->bounded = 0;
    for (int row = 0; row < ROWS; row++)
        if (vec_sum(vec_load(s->row_sum[row])) == 0.0f)
            s->row_max[row] = -3.4028234663852886e38f; /* finite, so that differences from it are never NaN */
}

static void add_tile(const struct problem *problem, struct forward_scratch *s, int64_t head, int64_t dim)
{
    const struct visit *visit = &s->visit;
    int64_t at = packed_at(problem, head, visit->tile, dim);
    const uint64_t *mask = visit->masked ? visit->mask + s->first_row : 0;
    float scale_log2 = (float)(fabs(problem->scale) * LOG2_E);
    float bound = s->largest_norm * problem->key_norm[packed_tile(problem, head, visit->tile)];
    if (s->bounded && !(bound <= BOUND)) /* nor where it is NaN */
        stop_bounding(s);
    product_scores(ROWS, dim, s->queries, (const unit *)problem->k_columns + at, s->scores);
    if (s->bounded && mask)
        weigh_bounded(s, scale_log2, mask);
    else if (s->bounded)
        weigh_bounded(s, scale_log2, 0);
    else if (mask)
        weigh(s, scale_log2, mask, dim);
    else
        weigh(s, scale_log2, 0, dim);
    product_over_keys(ROWS, dim, (const unit *)s->scores, (const unit *)problem->v_cross + at, s->out);
}

/* Those of the ROWS that are in [first, last] of the tile of queries; others are zeros. */
static void start_rows(const struct problem *problem, struct forward_scratch *s, int64_t head, int64_t query_head,
                       int64_t dim)
{
    int64_t batch = head / problem->num_kv_heads;
    float largest = 0.0f;
    for (int64_t row = 0; row < ROWS; row++) {
        int64_t query = s->plan.start + s->first_row + row;
        int is_row = query >= s->plan.first && query <= s->plan.last;
        unit *to = s->queries + row * dim / PER_UNIT;
        pack_row(problem, is_row ? row_of(problem->q, problem->q_stride, batch, query_head, query, problem->dtype) : 0,
                 dim, to);
        vec squares = vec_all(0.0f);
        for (int64_t u = 0; u < dim / PER_UNIT; u += LANES)
            squares = units_fma(units_load(to + u), units_load(to + u), squares);
        float square = vec_sum(squares);
        largest = not_less(largest, square);
        /* The maximum of scaled scores is the scaled maximum of scores where the scale is positive. */
        if (problem->scale < 0)
            for (int64_t u = 0; u < dim / PER_UNIT; u++)
#if defined(UNIT_BFLOAT16)
                to[u] ^= 0x80008000;
#else
                to[u] = -to[u];
#endif
        s->row_max[row] = 0.0f;
        vec_store(s->row_sum[row], vec_all(0.0f));
    }
    s->largest_norm = sqrtf(largest + LOST_SQUARES) * (float)(fabs(problem->scale) * LOG2_E);
    s->bounded = 1;
    memset(s->out, 0, ROWS * dim * sizeof(float));
}

/* Divide a row of out by its sum. Returns its lse; a row without keys gives 0 and -inf. */
static float finish_row(struct forward_scratch *s, int64_t row, int64_t dim)
{
    float sum = vec_sum(vec_load(s->row_sum[row]));
    vec by = vec_all(sum == 0.0f ? 1.0f : 1.0f / sum);
    for (int64_t d = 0; d < dim; d += LANES)
        vec_store(s->out + row * dim + d, vec_mul(vec_load(s->out + row * dim + d), by));
    return sum == 0.0f ? -INFINITY : (float)(((double)s->row_max[row] + log2f(sum)) * LN_2);
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
    int64_t first = s->plan.first, last = s->plan.last;
    const uint64_t *visible = problem->visible + in_slab * num_packed_tiles(problem);
    const uint64_t *is_column = problem->is_column + in_slab * num_packed_tiles(problem);
    begin_products();
    for (s->first_row = 0; s->first_row < TILE; s->first_row += ROWS) {
        s->plan.first = most(first, s->plan.start + s->first_row);
        s->plan.last = least(last, s->plan.start + s->first_row + ROWS - 1);
        for (int64_t query_head = kv_head * group; query_head < (kv_head + 1) * group; query_head++) {
            if (s->plan.first > s->plan.last)
                break;
            start_rows(problem, s, head, query_head, dim);
            struct walk walk = walk_keys(problem, &rules, &s->plan, visible, is_column);
            while (walk_next(&walk, kv_head, &s->visit))
                add_tile(problem, s, head, dim);
            for (int64_t query = s->plan.first; query <= s->plan.last; query++) {
                int64_t row = query - s->plan.start - s->first_row;
                float lse = finish_row(s, row, dim);
                write_out(problem, s->out + row * dim, lse, batch, query_head, query);
            }
        }
    }
    end_products();
}

/* --- global rows --- */

/* Item: global rows of a head of the slab over one share of the keys. */
static void attend_global(const struct problem *problem, int64_t item, char *scratch)
{
    struct forward_scratch *s = (struct forward_scratch *)scratch;
    int64_t in_slab = item / problem->num_splits, split = item % problem->num_splits;
    int64_t head = problem->first_head + in_slab, kv_head = head % problem->num_kv_heads;
    int64_t dim = padded_dim(problem->head_dim), group = group_size(problem), num_rows = num_global_rows(problem);
    int64_t share = (problem->num_grid_tiles + problem->num_splits - 1) / problem->num_splits;
    int64_t end = least((split + 1) * share, problem->num_grid_tiles);
    begin_products();
    for (int64_t in_group = 0; in_group < group; in_group++)
        for (int64_t start = 0; start < num_rows; start += ROWS) {
            s->plan.start = s->plan.first = start;
            s->plan.last = least(start + ROWS, num_rows) - 1;
            s->first_row = 0;
            start_rows(problem, s, head, kv_head * group + in_group, dim);
            for (int64_t tile = split * share; tile < end; tile++) {
                s->visit.tile = tile;
                s->visit.masked = 0;
                hide_keys(&s->visit, problem->visible[packed_tile(problem, head, tile)]);
                add_tile(problem, s, head, dim);
            }
            for (int64_t row = start; row <= s->plan.last; row++) {
                int64_t at = part_at(problem, split, in_slab, in_group, row);
                problem->part_lse[at] = finish_row(s, row - start, dim);
                memcpy(problem->part + at * dim, s->out + (row - start) * dim, dim * sizeof(float));
            }
        }
    end_products();
}

/* Item: a head of the slab, whose parts are merged in the order of the splits. */
static void merge_global(const struct problem *problem, int64_t in_slab, char *scratch)
{
    float *out = ((struct forward_scratch *)scratch)->out;
    int64_t head = problem->first_head + in_slab, kv_head = head % problem->num_kv_heads;
    int64_t dim = padded_dim(problem->head_dim), group = group_size(problem), num_rows = num_global_rows(problem);
    for (int64_t in_group = 0; in_group < group; in_group++)
        for (int64_t row = 0; row < num_rows; row++) {
            float largest = -INFINITY; /* NaN if a part's is: fmax would leave a NaN out, and the row would seem empty */
            double sum = 0.0;
            for (int64_t split = 0; split < problem->num_splits; split++)
                largest = not_less(largest, problem->part_lse[part_at(problem, split, in_slab, in_group, row)]);
            int has_keys = largest != -INFINITY;
            for (int64_t split = 0; split < problem->num_splits && has_keys; split++)
                sum += exp((double)problem->part_lse[part_at(problem, split, in_slab, in_group, row)] - largest);
            double lse = largest + log(sum);
            memset(out, 0, dim * sizeof(float));
            for (int64_t split = 0; split < problem->num_splits && has_keys; split++) {
                int64_t at = part_at(problem, split, in_slab, in_group, row);
                float share = (float)exp(problem->part_lse[at] - lse);
                for (int64_t d = 0; d < dim; d++)
                    out[d] += share * problem->part[at * dim + d];
            }
            write_out(problem, out, has_keys ? (float)lse : -INFINITY, head / problem->num_kv_heads,
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
