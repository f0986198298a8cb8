/* Which tiles of keys a tile of queries meets, and which pairs of a tile count: what all kernels share.
 *
 * Every pair counts once. A pair that several rules name belongs to the first of
 *
 *     global rows, window, columns (global keys, then strided ones), table (random and extra blocks),
 *
 * so that each rule's tiles leave out what an earlier rule has. Within a tile the keys of a row that count are a few
 * intervals of lanes, so that a mask is 64 bits a row, made by integer arithmetic; where a whole tile counts none is
 * made. Columns are numbered by ascending position.
 *
 * Tiles of keys lie on a grid, [64 t, 64 t + 64), numbered from 0, and tiles of columns follow those of the grid.
 */
#ifndef GENOSPARSE_TILES_H
#define GENOSPARSE_TILES_H

#include "problem.h"

#define INLINE_RULE static inline

static const uint64_t ALL_KEYS = ~(uint64_t)0;

struct rules {
    int64_t length, window, num_global, period, offset, block_size; /* period 0: no strided columns */
    int causal;
};

INLINE_RULE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE_RULE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE_RULE int64_t tiles_of(int64_t positions) { return (positions + TILE - 1) / TILE; }

INLINE_RULE struct rules rules_of(const struct problem *problem, int64_t kv_head)
{
    int64_t phase = problem->stagger ? kv_head * problem->stride / problem->num_kv_heads : 0;
    struct rules rules = {
        .length = problem->length, .window = problem->window, .num_global = problem->num_global,
        .period = problem->stride * problem->block_size, .offset = phase * problem->block_size,
        .block_size = problem->block_size, .causal = (int)problem->causal,
    };
    return rules;
}

/* --- columns: the keys that every query sees --- */

INLINE_RULE int64_t strided_below(const struct rules *rules, int64_t x)
{
    int64_t periods = x < rules->period ? 0 : x / rules->period;
    int64_t rest = x - periods * rules->period - rules->offset;
    return periods * rules->block_size + most(0, least(rest, rules->block_size));
}

/* How many columns lie before position x: also the number of the column at x, if there is one. */
INLINE_RULE int64_t columns_below(const struct rules *rules, int64_t x)
{
    int64_t count = least(x, rules->num_global);
    if (rules->period && x > rules->num_global)
        count += strided_below(rules, x) - strided_below(rules, rules->num_global);
    return count;
}

INLINE_RULE int64_t column_position(const struct rules *rules, int64_t column)
{
    if (column < rules->num_global)
        return column;
    int64_t strided = column - rules->num_global + strided_below(rules, rules->num_global);
    return strided / rules->block_size * rules->period + rules->offset + strided % rules->block_size;
}

/* Columns before positions that ascend, without a division for each. */
struct column_count {
    int64_t count, next; /* so many lie before the position asked for last, and where the next one is */
};

INLINE_RULE void count_from(const struct rules *rules, int64_t count, struct column_count *counted)
{
    counted->count = count;
    counted->next = count >= rules->num_global && !rules->period ? INT64_MAX : column_position(rules, count);
}

INLINE_RULE int64_t count_below(const struct rules *rules, int64_t x, struct column_count *counted)
{
    while (x > counted->next)
        count_from(rules, counted->count + 1, counted);
    return counted->count;
}

INLINE_RULE int is_column(const struct rules *rules, int64_t x)
{
    return columns_below(rules, x + 1) > columns_below(rules, x);
}

/* --- masks: a bit for each key of a tile --- */

/* Bits [low, high) of 64; empty where high <= low. */
INLINE_RULE uint64_t bits_between(int64_t low, int64_t high)
{
    low = most(low, 0);
    high = least(high, TILE);
    if (high <= low)
        return 0;
    uint64_t below = high == TILE ? ALL_KEYS : ((uint64_t)1 << high) - 1;
    return below & (ALL_KEYS << low);
}

/* A tile of queries: the rows [start, start + TILE), of which [first, last] are computed. */
struct query_tile {
    int64_t start, first, last;
    int64_t low[TILE], high[TILE]; /* each row's window, cut by causal and the ends */
    int has_column_cuts;           /* the same as numbers of columns, made when a tile needs them */
    int64_t column_low[TILE], column_high[TILE], column_end[TILE];
};

INLINE_RULE void plan_queries(const struct rules *rules, int64_t tile, struct query_tile *queries)
{
    queries->start = tile * TILE;
    queries->first = rules->causal ? queries->start : most(queries->start, rules->num_global);
    queries->last = least(queries->start + TILE, rules->length) - 1;
    queries->has_column_cuts = 0;
    for (int row = 0; row < TILE; row++) {
        int64_t query = queries->start + row, block = query / rules->block_size;
        int64_t end = rules->causal ? least(query + 1, rules->length) : rules->length;
        int on = rules->window >= 0;
        queries->high[row] = on ? least((block + rules->window + 1) * rules->block_size, end) : 0;
        queries->low[row] = on ? least(most((block - rules->window) * rules->block_size, 0), queries->high[row]) : 0;
    }
}

INLINE_RULE void cut_columns(const struct rules *rules, struct query_tile *queries)
{
    if (queries->has_column_cuts)
        return;
    queries->has_column_cuts = 1;
    int64_t end = rules->causal ? least(queries->start, rules->length - 1) + 1 : rules->length;
    struct column_count low, high, seen;
    count_from(rules, columns_below(rules, queries->low[0]), &low);
    count_from(rules, columns_below(rules, queries->high[0]), &high);
    count_from(rules, columns_below(rules, end), &seen);
    for (int row = 0; row < TILE; row++) {
        int64_t query = least(queries->start + row, rules->length - 1);
        queries->column_low[row] = count_below(rules, queries->low[row], &low);
        queries->column_high[row] = count_below(rules, queries->high[row], &high);
        queries->column_end[row] = count_below(rules, rules->causal ? query + 1 : rules->length, &seen);
    }
}

/* --- the walk over the tiles of keys that a tile of queries meets --- */

struct visit {
    int64_t tile;        /* of keys, as packed */
    int masked;          /* else every pair counts */
    uint64_t mask[TILE]; /* by row */
};

enum walk_stage { WINDOW, COLUMNS, TABLE, DONE };

struct walk {
    const struct problem *problem;
    const struct rules *rules;
    struct query_tile *queries;
    const uint64_t *visible, *is_column; /* of the head's packed tiles */
    enum walk_stage stage;
    int64_t next, end;
    const int32_t *entries;
};

INLINE_RULE struct walk walk_keys(
    const struct problem *problem, const struct rules *rules, struct query_tile *queries, const uint64_t *visible,
    const uint64_t *is_column)
{
    struct walk walk = {
        .problem = problem, .rules = rules, .queries = queries, .visible = visible, .is_column = is_column,
        .stage = WINDOW,
    };
    int64_t low = queries->low[queries->first - queries->start], high = queries->high[queries->last - queries->start];
    walk.next = low / TILE;
    walk.end = low < high ? tiles_of(high) : walk.next;
    return walk;
}

/* Keep what is visible of a tile; where nothing is masked otherwise, mask it if a key is hidden. */
INLINE_RULE void hide_keys(struct visit *visit, uint64_t visible)
{
    if (visible == ALL_KEYS)
        return;
    for (int row = 0; row < TILE; row++)
        visit->mask[row] = (visit->masked ? visit->mask[row] : ALL_KEYS) & visible;
    visit->masked = 1;
}

INLINE_RULE void visit_window(const struct walk *walk, struct visit *visit)
{
    const struct query_tile *queries = walk->queries;
    int64_t base = visit->tile * TILE;
    int64_t first = queries->first - queries->start, last = queries->last - queries->start;
    /* Both ends of the windows ascend with the row. */
    visit->masked = queries->low[last] > base || queries->high[first] < base + TILE;
    if (visit->masked)
        for (int row = 0; row < TILE; row++)
            visit->mask[row] = bits_between(queries->low[row] - base, queries->high[row] - base);
}

/* Returns whether any pair may count. */
INLINE_RULE int visit_columns(const struct walk *walk, int64_t column_tile, struct visit *visit)
{
    struct query_tile *queries = walk->queries;
    int64_t base = column_tile * TILE;
    int64_t first = queries->first - queries->start, last = queries->last - queries->start;
    int64_t window_start = columns_below(walk->rules, queries->low[first]);
    int64_t window_end = columns_below(walk->rules, queries->high[last]);
    int touches_window = base < window_end && base + TILE > window_start;
    int is_cut = walk->rules->causal && columns_below(walk->rules, queries->first + 1) < base + TILE;
    visit->masked = touches_window || is_cut;
    if (!visit->masked)
        return 1;
    cut_columns(walk->rules, queries);
    uint64_t any = 0;
    for (int row = 0; row < TILE; row++) {
        uint64_t before = bits_between(0, queries->column_end[row] - base);
        uint64_t window = bits_between(queries->column_low[row] - base, queries->column_high[row] - base);
        visit->mask[row] = before & ~window;
        any |= visit->mask[row];
    }
    return any != 0;
}

/* An entry of a table: rows [low, high) see the keys [key_low, key_high) that no rule before has. */
INLINE_RULE void visit_entry(
    const struct rules *rules, const struct query_tile *queries, const int32_t *entry, uint64_t is_column,
    struct visit *visit)
{
    int64_t base = entry[2] / TILE * (int64_t)TILE;
    uint64_t keys = bits_between(entry[2] - base, entry[3] - base) & ~is_column;
    visit->masked = 1;
    for (int row = 0; row < TILE; row++) {
        int64_t query = queries->start + row;
        int is_row = query >= entry[0] && query < entry[1];
        uint64_t window = bits_between(queries->low[row] - base, queries->high[row] - base);
        uint64_t seen = rules->causal ? bits_between(0, query + 1 - base) : ALL_KEYS;
        visit->mask[row] = is_row ? keys & ~window & seen : 0;
    }
}

/* The next tile of keys that any row meets; 0 where there is none. */
INLINE_RULE int walk_next(struct walk *walk, int64_t kv_head, struct visit *visit)
{
    const struct problem *problem = walk->problem;
    for (;;) {
        while (walk->next >= walk->end) {
            walk->next = 0;
            if (walk->stage == WINDOW) {
                int64_t end = walk->rules->causal ? walk->queries->last + 1 : walk->rules->length;
                walk->end = tiles_of(columns_below(walk->rules, end));
            } else if (walk->stage == COLUMNS && problem->query_entries) {
                const int32_t *first = problem->query_entry_first + kv_head * problem->entry_first_stride;
                int64_t tile = walk->queries->start / TILE;
                walk->entries = problem->query_entries + kv_head * problem->query_entries_stride;
                walk->next = first[tile];
                walk->end = first[tile + 1];
            } else {
                return 0;
            }
            walk->stage++;
        }
        int64_t next = walk->next++;
        if (walk->stage == WINDOW) {
            visit->tile = next;
            visit_window(walk, visit);
        } else if (walk->stage == COLUMNS) {
            visit->tile = problem->num_grid_tiles + next;
            if (!visit_columns(walk, next, visit))
                continue;
        } else {
            const int32_t *entry = walk->entries + 4 * next;
            visit->tile = entry[2] / TILE;
            visit_entry(walk->rules, walk->queries, entry, walk->is_column[visit->tile], visit);
        }
        hide_keys(visit, walk->visible[visit->tile]);
        return 1;
    }
}

/* --- where things lie --- */

INLINE_RULE int64_t num_packed_tiles(const struct problem *problem)
{
    return problem->num_grid_tiles + problem->num_column_tiles;
}
INLINE_RULE int64_t slab_size(const struct problem *problem) { return problem->last_head - problem->first_head; }
INLINE_RULE int64_t group_size(const struct problem *problem) { return problem->num_heads / problem->num_kv_heads; }
INLINE_RULE int64_t num_global_rows(const struct problem *problem)
{
    return problem->causal ? 0 : problem->num_global; /* with causal the other rules say what these rows see */
}
/* Place of a global row in parts. */
INLINE_RULE int64_t part_at(
    const struct problem *problem, int64_t split, int64_t in_slab, int64_t in_group, int64_t row)
{
    int64_t heads = slab_size(problem) * group_size(problem);
    return (split * heads + in_slab * group_size(problem) + in_group) * num_global_rows(problem) + row;
}

#endif
