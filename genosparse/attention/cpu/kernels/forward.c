/* Forward: an online softmax over the tiles of keys that a tile of queries meets.
 *
 * Reads top-down: which rows, which tiles of keys, then for each tile scores, mask, running maximum, rescale,
 * accumulate. Global rows, which see every key, are split over the keys, and their parts are merged by lse.
 *
 * The work is a row of steps, each of 32 queries and 64 keys, and three steps are under way at once: while one is weighed,
 * the scores of the next are multiplied, and what the one before weighed is added. None waits for another, so that AMX
 * and the vector units are busy side by side.
 */
#include <math.h>

#include "packing.h"

#define LN_2 0.6931471805599453

enum { STEP = 32, STEPS = 3 }; /* queries of a step; steps under way */

struct step {
    _Alignas(64) float scores[STEP * TILE]; /* then weights: a row of units where the row of scores was */
    int row;                                /* of the tile, the first one */
    const uint64_t *mask;                   /* by row of the tile, or null */
    const unit *columns, *cross;            /* of the keys and of the values */
};

/* One thread's memory. */
struct forward_scratch {
    unit queries[TILE * MAX_DIM];
    struct step steps[STEPS];
    int64_t num_steps; /* so far */
    float out[TILE * MAX_DIM];
    float row_max[TILE];        /* of scores in base 2, or less by HEADROOM at the most */
    float row_sum[TILE][LANES]; /* a sum for each lane */
    struct query_tile plan;
    struct visit visits[2];
};

int64_t EXPORT(genosparse_forward_scratch_)(void);
int64_t EXPORT(genosparse_forward_scratch_)(void) { return sizeof(struct forward_scratch); }
void EXPORT(genosparse_forward_)(const struct problem *problem);

/* By how much scores may pass the maximum that a row has, in base 2, before the row is scaled anew: sums have room for it,
 * and most tiles after the first few then have nothing to rescale. */
#define HEADROOM 8.0f

/* Take a tile's maximum for a row's, and scale the row's sums by what that changes. */
static void raise_max(struct forward_scratch *s, int row, float tile_max, int64_t dim)
{
    if (tile_max <= s->row_max[row])
        return;
    vec by = vec_all(exp2f(s->row_max[row] - tile_max));
    s->row_max[row] = tile_max;
    vec_store(s->row_sum[row], vec_mul(vec_load(s->row_sum[row]), by));
    for (int64_t d = 0; d < dim; d += LANES)
        vec_store(s->out + row * dim + d, vec_mul(vec_load(s->out + row * dim + d), by));
}

/* Scale, mask and exponentiate the scores of some rows; move the running maximum, sum and out along. */
INLINE void weigh(struct forward_scratch *s, struct step *step, int64_t first, int64_t count, float scale_log2,
                  const uint64_t *mask, int64_t dim)
{
    vec scale = vec_all(scale_log2);
    for (int64_t in_step = first; in_step < first + count; in_step++) {
        float *scores = step->scores + in_step * TILE;
        int row = step->row + (int)in_step;
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
            units_store_row((unit *)scores + i / 2 * LANES, x[i], x[i + 1]);
#else
        for (int i = 0; i < VECTORS; i++)
            vec_store(scores + i * LANES, x[i]);
#endif
    }
}

/* The products of two steps are cut into blocks of columns, first those of scores and then those of sums, and the rows
 * of the step between them into as many parts as it takes to be near each: the processor looks some hundred
 * instructions ahead. Products on the vector units themselves are best left whole. */
#if defined(UNIT_AMX)
static const int64_t BLOCK_COLUMNS = 32, PARTS = 4;
#else
static const int64_t BLOCK_COLUMNS = MAX_DIM, PARTS = 1;
#endif

INLINE void multiply_block(struct forward_scratch *s, struct step *next, struct step *before, int64_t block, int64_t dim)
{
    const int64_t of_scores = most(TILE / BLOCK_COLUMNS, 1);
    if (block < of_scores) {
        int64_t column = block * BLOCK_COLUMNS;
        if (next)
            product_scores(STEP, least(BLOCK_COLUMNS, TILE), dim, s->queries + next->row * dim / PER_UNIT,
                           next->columns + column, next->scores + column);
    } else if (before) {
        int64_t column = (block - of_scores) * BLOCK_COLUMNS;
        product_over_keys(STEP, least(BLOCK_COLUMNS, dim), dim, (const unit *)before->scores, before->cross + column,
                          s->out + before->row * dim + column);
    }
}

/* One move of the work: multiply the scores of ``next``, weigh ``now``, add ``before``; null where there is none, at the beginning
 * and at the end of a row of steps. */
static void move_on(const struct problem *problem, struct forward_scratch *s, struct step *next, struct step *now,
                    struct step *before, int64_t dim)
{
    float scale_log2 = (float)(fabs(problem->scale) * LOG2_E);
    int64_t num_blocks = most(TILE / BLOCK_COLUMNS, 1) + (dim + BLOCK_COLUMNS - 1) / BLOCK_COLUMNS;
    for (int64_t part = 0; part < PARTS; part++) {
        for (int64_t block = part * num_blocks / PARTS; block < (part + 1) * num_blocks / PARTS; block++)
            multiply_block(s, next, before, block, dim);
        if (now && now->mask)
            weigh(s, now, part * STEP / PARTS, STEP / PARTS, scale_log2, now->mask, dim);
        else if (now)
            weigh(s, now, part * STEP / PARTS, STEP / PARTS, scale_log2, 0, dim);
    }
}

/* The step so many before the next one, or null. */
INLINE struct step *step_before(struct forward_scratch *s, int64_t count)
{
    return s->num_steps >= count ? &s->steps[(s->num_steps - count) % STEPS] : 0;
}

static void add_tile(const struct problem *problem, struct forward_scratch *s, const struct visit *visit, int64_t head,
                     int64_t dim)
{
    int64_t at = packed_at(problem, head, visit->tile, dim);
    for (int row = 0; row < TILE; row += STEP) {
        struct step *step = &s->steps[s->num_steps % STEPS];
        step->row = row;
        step->mask = visit->masked ? visit->mask : 0;
        step->columns = (const unit *)problem->k_columns + at;
        step->cross = (const unit *)problem->v_cross + at;
        move_on(problem, s, step, step_before(s, 1), step_before(s, 2), dim);
        s->num_steps++;
    }
}

/* Finish the steps that are under way. */
static void finish_steps(const struct problem *problem, struct forward_scratch *s, int64_t dim)
{
    move_on(problem, s, 0, step_before(s, 1), step_before(s, 2), dim);
    move_on(problem, s, 0, 0, step_before(s, 1), dim);
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
        vec_store(s->row_sum[row], vec_all(0.0f));
    }
    memset(s->out, 0, TILE * dim * sizeof(float));
    s->num_steps = 0;
}

/* Divide a row of out by its sum. Returns its lse; a row without keys gives 0 and -inf. */
static float finish_row(struct forward_scratch *s, int row, int64_t dim)
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
    if (s->plan.first > s->plan.last)
        return;
    const uint64_t *visible = problem->visible + in_slab * num_packed_tiles(problem);
    const uint64_t *is_column = problem->is_column + in_slab * num_packed_tiles(problem);
    begin_products();
    for (int64_t query_head = kv_head * group; query_head < (kv_head + 1) * group; query_head++) {
        start_rows(problem, s, head, query_head, dim);
        struct walk walk = walk_keys(problem, &rules, &s->plan, visible, is_column);
        for (int turn = 0; walk_next(&walk, kv_head, &s->visits[turn]); turn = !turn)
            add_tile(problem, s, &s->visits[turn], head, dim);
        finish_steps(problem, s, dim);
        for (int64_t query = s->plan.first; query <= s->plan.last; query++) {
            int row = (int)(query - s->plan.start);
            float lse = finish_row(s, row, dim);
            write_out(problem, s->out + row * dim, lse, batch, query_head, query);
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
        for (int64_t start = 0; start < num_rows; start += TILE) {
            s->plan.start = s->plan.first = start;
            s->plan.last = least(start + TILE, num_rows) - 1;
            start_rows(problem, s, head, kv_head * group + in_group, dim);
            for (int64_t tile = split * share; tile < end; tile++) {
                struct visit *visit = &s->visits[tile % 2];
                visit->tile = tile;
                visit->masked = 0;
                hide_keys(visit, problem->visible[in_slab * num_packed_tiles(problem) + tile]);
                add_tile(problem, s, visit, head, dim);
            }
            finish_steps(problem, s, dim);
            for (int64_t row = start; row <= s->plan.last; row++) {
                int64_t at = part_at(problem, split, in_slab, in_group, row);
                problem->part_lse[at] = finish_row(s, (int)(row - start), dim);
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
