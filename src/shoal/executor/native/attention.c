/* A context is cut at every multiple of PIECE tokens. Of each piece a query knows the largest score, the sum of
 * e^(score - largest) and the sum of the values that these weigh; its pieces are joined in their order, each onto
 * what the ones before have given (Milakov and Gimelshein, 2018; over threads as in Flash-Decoding, Dao et al.,
 * 2023). So a result does not depend on the queries beside it, nor on who computes which piece: where there are
 * few queries for the threads, every piece of the context is a unit of work, else a block of queries is. */
#include "attention.h"
#include "elementwise.h"
#include "linear.h"
#include <math.h>

#define PIECE 256   /* tokens that are taken at once; a multiple of PAGE */
#define TILE 4      /* queries whose sums stay in registers */
#define BLOCK 16    /* queries of a unit: they find keys and values in the cache */
#define EACH 4      /* units for each thread, so that all end at about the same time */

#if LANES == 16
#define SIDE(n) ((n) <= 2 ? 4 : 2) /* sums of a query that grow side by side: fused multiply-adds wait for one another */
#else
#define SIDE(n) ((n) <= 2 ? 2 : 1)
#endif

static int64_t width(const kv_t *kv) { return (kv->head_dim + 15) & ~15; }
static int64_t element(const kv_t *kv) { return kv->format == INT8 ? 1 : 2; }
static int64_t aligned(int64_t bytes) { return (bytes + 63) & ~63; }
static int64_t keys_bytes(const kv_t *kv) { return aligned(kv->kv_heads * kv->head_dim * PAGE * element(kv)); }
static int64_t values_bytes(const kv_t *kv) { return aligned(kv->kv_heads * PAGE * width(kv) * element(kv)); }
static int64_t scales_bytes(const kv_t *kv) { return kv->format == INT8 ? aligned(kv->kv_heads * PAGE * 4) : 0; }

static int64_t layer_bytes(const kv_t *kv) { return keys_bytes(kv) + values_bytes(kv) + 2 * scales_bytes(kv); }

int64_t kv_layer_bytes(const kv_t *kv) { return layer_bytes(kv); }

static uint8_t *layer_of(const kv_t *kv, int layer, int32_t page) {
    return kv->arena + page * kv->page_bytes + layer * layer_bytes(kv);
}

static float largest(const float *x, int n) {
    float top = 0;
    for (int i = 0; i < n; i++) top = fabsf(x[i]) > top ? fabsf(x[i]) : top;
    return top;
}

void kv_put(const kv_t *kv, int layer, const sequence_t *sequence, int position, const float *key,
            const float *value) {
    uint8_t *keys = layer_of(kv, layer, sequence->pages[position / PAGE]), *values = keys + keys_bytes(kv);
    float *key_scales = (float *)(values + values_bytes(kv));
    float *value_scales = (float *)((uint8_t *)key_scales + scales_bytes(kv));
    const int dims = kv->head_dim, slot = position % PAGE;
    const int64_t wide = width(kv);
    for (int h = 0; h < kv->kv_heads; h++, key += dims, value += dims) {
        if (kv->format == INT8) {
            int8_t *k = (int8_t *)keys + (int64_t)h * dims * PAGE + slot;
            int8_t *v = (int8_t *)values + (h * PAGE + slot) * wide;
            const float key_top = largest(key, dims), value_top = largest(value, dims);
            const float key_to = key_top > 0 ? 127 / key_top : 0, value_to = value_top > 0 ? 127 / value_top : 0;
            key_scales[h * PAGE + slot] = key_top / 127;
            value_scales[h * PAGE + slot] = value_top / 127;
            for (int d = 0; d < dims; d++) k[d * PAGE] = (int8_t)lrintf(key[d] * key_to);
            for (int d = 0; d < dims; d++) v[d] = (int8_t)lrintf(value[d] * value_to);
            for (int64_t d = dims; d < wide; d++) v[d] = 0;
        } else {
            uint16_t *k = (uint16_t *)keys + (int64_t)h * dims * PAGE + slot;
            uint16_t *v = (uint16_t *)values + (h * PAGE + slot) * wide;
            for (int d = 0; d < dims; d++) k[d * PAGE] = to_bf16(key[d]);
            for (int d = 0; d < dims; d++) v[d] = to_bf16(value[d]);
            for (int64_t d = dims; d < wide; d++) v[d] = 0;
        }
    }
}

/* What a query knows of some tokens. */
typedef struct {
    float top;      /* the largest score */
    float sum;      /* of e^(score - top) */
    float unused[14];
    float values[]; /* [width], their sum weighted by these */
} part_t;

static int64_t part_floats(const kv_t *kv) { return (int64_t)(sizeof(part_t) / sizeof(float)) + width(kv); }
static part_t *part_at(const kv_t *kv, float *parts, int64_t number) {
    return (part_t *)(parts + number * part_floats(kv));
}

typedef struct {
    const kv_t *kv;
    const sequence_t *sequences;
    const float *queries;
    float *out;
    float *threads; /* of each thread: scores[TILE][PIECE], then TILE parts of a piece and BLOCK of a unit */
    float *parts;   /* when split, of each query and each piece of its sequence */
    int64_t stride;
    int layer, window, split;
} attention_t;

static int64_t thread_floats(const kv_t *kv) { return TILE * PIECE + (TILE + BLOCK) * part_floats(kv); }

/* Queries of a sequence that share a head's keys and values: each row has `group` of them. */
static int group_of(const kv_t *kv) { return kv->heads / kv->kv_heads; }
static int blocks_of(const kv_t *kv, const sequence_t *sequence) {
    return (sequence->rows * group_of(kv) + BLOCK - 1) / BLOCK;
}

/* The first token that the token at `position` sees. */
static int seen_from(int window, int position) {
    return window && position + 1 > window ? position + 1 - window : 0;
}
/* The token behind the last that a row sees. */
static int seen_to(const sequence_t *sequence, int row) {
    return sequence->ends ? sequence->ends[row] : sequence->position + row + 1;
}
static int first_piece(int window, const sequence_t *sequence) {
    return seen_from(window, sequence->position) / PIECE;
}
static int pieces_of(int window, const sequence_t *sequence) {
    const int tokens = sequence->position + sequence->rows;
    return (tokens + PIECE - 1) / PIECE - first_piece(window, sequence);
}

static int is_split(const kv_t *kv, const sequence_t *sequences, int count, int threads) {
    int units = 0, pieces = 0;
    for (int s = 0; s < count; s++) {
        units += blocks_of(kv, &sequences[s]) * kv->kv_heads;
        if (pieces_of(0, &sequences[s]) > pieces) pieces = pieces_of(0, &sequences[s]);
    }
    return pieces > 1 && units < EACH * threads;
}

static int units_of(const kv_t *kv, int window, const sequence_t *sequence, int split) {
    return blocks_of(kv, sequence) * kv->kv_heads * (split ? pieces_of(window, sequence) : 1);
}

int attention_units(const kv_t *kv, int window, const sequence_t *sequences, int count, int threads) {
    const int split = is_split(kv, sequences, count, threads);
    int units = 0;
    for (int s = 0; s < count; s++) units += units_of(kv, window, &sequences[s], split);
    return units;
}

int64_t attention_floats(const kv_t *kv, const sequence_t *sequences, int count, int threads) {
    int64_t parts = 0;
    if (is_split(kv, sequences, count, threads))
        for (int s = 0; s < count; s++)
            parts += (int64_t)sequences[s].rows * kv->heads * pieces_of(0, &sequences[s]);
    return threads * thread_floats(kv) + parts * part_floats(kv);
}

/* ---- one piece ---- */

typedef struct {
    const sequence_t *sequence;
    int head;                   /* of keys and values */
    int piece;
    int count;                  /* queries */
    const float *query[TILE];
    int from[TILE], to[TILE];   /* tokens of the piece that each query sees */
    part_t *part[TILE];         /* what comes out */
} tile_t;

INLINE v16 load16_kv(const uint8_t *p, int64_t at, int int8) {
    return int8 ? load16_i8((const int8_t *)p + at) : load16_bf16((const uint16_t *)p + at);
}

static const uint8_t *page_of(const attention_t *job, const tile_t *tile, int page) {
    return layer_of(job->kv, job->layer, tile->sequence->pages[tile->piece * (PIECE / PAGE) + page]);
}

/* scores[n][PIECE] of `side` pages from `page` on. Meanwhile the pages after them come: they lie far apart in
 * memory, so the hardware does not see which is next. */
INLINE void score_pages(const attention_t *job, const tile_t *tile, int page, int last, float *scores, int n,
                        int side, int int8) {
    const kv_t *kv = job->kv;
    const int64_t at = (int64_t)tile->head * kv->head_dim * PAGE, size = int8 ? 1 : 2;
    const uint8_t *base[4], *ahead[4];
    v16 acc[TILE][4];
    UNROLL for (int s = 0; s < side; s++) {
        base[s] = page_of(job, tile, page + s);
        ahead[s] = page_of(job, tile, page + side + s < last ? page + side + s : page + s) + at * size;
        UNROLL for (int i = 0; i < n; i++) acc[i][s] = zero16();
    }
    for (int d = 0; d < kv->head_dim; d++)
        UNROLL for (int s = 0; s < side; s++) {
            const v16 keys = load16_kv(base[s], at + d * PAGE, int8);
            __builtin_prefetch(ahead[s] + d * PAGE * size);
            UNROLL for (int i = 0; i < n; i++) acc[i][s] = fma16(splat16(tile->query[i][d]), keys, acc[i][s]);
        }
    UNROLL for (int s = 0; s < side; s++) {
        v16 factor = splat16(kv->scale);
        if (int8) {
            const float *scales = (const float *)(base[s] + keys_bytes(kv) + values_bytes(kv)) + tile->head * PAGE;
            factor = times16(factor, load16(scales));
        }
        UNROLL for (int i = 0; i < n; i++)
            store16(scores + i * PIECE + (page + s) * PAGE, times16(acc[i][s], factor));
    }
}

/* Scores of tokens [from, to) become e^(score - top), all others of [begin, end), whole pages, 0. */
static void soften(float *scores, int from, int to, int begin, int end, part_t *part) {
    part->top = -INFINITY;
    part->sum = 0;
    if (from >= to) { /* beside queries that see some */
        memset(scores + begin, 0, (size_t)(end - begin) * sizeof *scores);
        return;
    }
    for (int t = begin; t < from; t++) scores[t] = -INFINITY;
    for (int t = to; t < end; t++) scores[t] = -INFINITY;
    vf most = splat(-INFINITY);
    for (int t = begin; t < end; t += LANES) most = larger(load(scores + t), most);
    for (int l = 0; l < LANES; l++) part->top = most[l] > part->top ? most[l] : part->top;
    const vf top = splat(part->top);
    v16 sum = zero16();
    for (int t = begin; t < end; t += 16) {
        UNROLL for (int l = 0; l < 16; l += LANES) store(scores + t + l, exponential(load(scores + t + l) - top));
        sum = plus16(sum, load16(scores + t));
    }
    part->sum = sum16(sum);
}

/* An unused place of a page may hold anything, NaN too: what is multiplied by 0 stays 0. */
static void scale_weights(float *weights, const float *scales) {
    for (int t = 0; t < PAGE; t += LANES) {
        const vf weight = load(weights + t);
        store(weights + t, (vf)((vi)(weight * load(scales + t)) & (weight != splat(0))));
    }
}

/* values[d … d + 16 · side) of each part += those of a page's tokens, token by token. */
INLINE void weigh_page(const attention_t *job, const tile_t *tile, const uint8_t *values, const uint8_t *ahead,
                       int64_t d, int slots, const float *weights, int n, int side, int int8) {
    const int64_t wide = width(job->kv), at = (int64_t)tile->head * PAGE * wide + d, size = int8 ? 1 : 2;
    v16 acc[TILE][4];
    UNROLL for (int i = 0; i < n; i++) UNROLL for (int s = 0; s < side; s++)
        acc[i][s] = load16(tile->part[i]->values + d + 16 * s);
    for (int slot = 0; slot < slots; slot++) {
        v16 wide16[4];
        UNROLL for (int s = 0; s < side; s++) {
            wide16[s] = load16_kv(values, at + slot * wide + 16 * s, int8);
            __builtin_prefetch(ahead + (at + slot * wide + 16 * s) * size);
        }
        UNROLL for (int i = 0; i < n; i++) UNROLL for (int s = 0; s < side; s++)
            acc[i][s] = fma16(splat16(weights[i * PIECE + slot]), wide16[s], acc[i][s]);
    }
    UNROLL for (int i = 0; i < n; i++) UNROLL for (int s = 0; s < side; s++)
        store16(tile->part[i]->values + d + 16 * s, acc[i][s]);
}

INLINE void attend_piece(const attention_t *job, const tile_t *tile, float *scores, int n, int int8) {
    const kv_t *kv = job->kv;
    const int64_t wide = width(kv), keys = keys_bytes(kv);
    int from = tile->from[0], to = tile->to[0];
    for (int i = 1; i < n; i++) {
        from = tile->from[i] < from ? tile->from[i] : from;
        to = tile->to[i] > to ? tile->to[i] : to;
    }
    const int first = from / PAGE, last = (to + PAGE - 1) / PAGE;
    int page = first;
    for (; page + SIDE(n) <= last; page += SIDE(n)) score_pages(job, tile, page, last, scores, n, SIDE(n), int8);
    for (; page < last; page++) score_pages(job, tile, page, last, scores, n, 1, int8);
    for (int i = 0; i < n; i++) {
        soften(scores + i * PIECE, tile->from[i], tile->to[i], first * PAGE, last * PAGE, tile->part[i]);
        memset(tile->part[i]->values, 0, (size_t)wide * sizeof(float));
    }
    for (page = first; page < last; page++) {
        const uint8_t *base = page_of(job, tile, page) + keys;
        const uint8_t *ahead = page_of(job, tile, page + 1 < last ? page + 1 : page) + keys;
        const float *scales = (const float *)(base + values_bytes(kv) + scales_bytes(kv)) + tile->head * PAGE;
        const int slots = to - page * PAGE < PAGE ? to - page * PAGE : PAGE;
        for (int i = 0; int8 && i < n; i++) scale_weights(scores + i * PIECE + page * PAGE, scales);
        int64_t d = 0;
        for (; d + 16 * SIDE(n) <= wide; d += 16 * SIDE(n))
            weigh_page(job, tile, base, ahead, d, slots, scores + page * PAGE, n, SIDE(n), int8);
        for (; d < wide; d += 16) weigh_page(job, tile, base, ahead, d, slots, scores + page * PAGE, n, 1, int8);
    }
}

static void attend_tile(const attention_t *job, const tile_t *tile, float *scores) {
    const int int8 = job->kv->format == INT8;
#define CASE(n)                                                                                                     \
    case n:                                                                                                         \
        if (int8) attend_piece(job, tile, scores, n, 1);                                                            \
        else attend_piece(job, tile, scores, n, 0);                                                                 \
        break
    switch (tile->count) {
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
    }
}

/* ---- pieces of a query ---- */

static void clear(part_t *part, int64_t wide) {
    part->top = -INFINITY;
    part->sum = 0;
    memset(part->values, 0, (size_t)wide * sizeof(float));
}

static void join(part_t *into, const part_t *part, int64_t wide) {
    const float top = part->top > into->top ? part->top : into->top;
    const vf kept = exponential(splat(into->top - top)), added = exponential(splat(part->top - top));
    into->top = top;
    into->sum = fma_lanes(splat(part->sum), added, splat(into->sum) * kept)[0];
    for (int64_t d = 0; d < wide; d += LANES)
        store(into->values + d, fma_lanes(load(part->values + d), added, load(into->values + d) * kept));
}

static void finish(const part_t *part, int dims, float *out) {
    const float factor = 1 / part->sum;
    for (int d = 0; d < dims; d++) out[d] = part->values[d] * factor;
}

/* ---- units ---- */

typedef struct {
    const sequence_t *sequence;
    int head, query, count; /* queries [query, query + count) of a head of keys and values */
    int first, last;        /* pieces */
    int64_t part;           /* when split, that of the sequence's first query and first piece */
} unit_t;

/* The heads of one piece side by side: they are neighbours in memory. */
static unit_t find_unit(const attention_t *job, int number) {
    const kv_t *kv = job->kv;
    unit_t unit = {.sequence = job->sequences, .part = 0};
    for (int units; number >= (units = units_of(kv, job->window, unit.sequence, job->split)); unit.sequence++) {
        number -= units;
        unit.part += (int64_t)unit.sequence->rows * kv->heads * pieces_of(job->window, unit.sequence);
    }
    const int pieces = pieces_of(job->window, unit.sequence), left = unit.sequence->rows * group_of(kv);
    unit.head = number % kv->kv_heads;
    number /= kv->kv_heads;
    unit.first = first_piece(job->window, unit.sequence);
    unit.last = unit.first + pieces;
    if (job->split) {
        unit.first += number % pieces;
        unit.last = unit.first + 1;
        number /= pieces;
    }
    unit.query = number * BLOCK;
    unit.count = left - unit.query < BLOCK ? left - unit.query : BLOCK;
    return unit;
}

static int row_of(const kv_t *kv, int query) { return query / group_of(kv); }
static int head_of(const kv_t *kv, int head, int query) { return head * group_of(kv) + query % group_of(kv); }

/* Where the query's part of a piece lies when split. */
static part_t *split_part(const attention_t *job, const unit_t *unit, int query, int piece) {
    const kv_t *kv = job->kv;
    const int64_t number = (int64_t)row_of(kv, query) * kv->heads + head_of(kv, unit->head, query);
    const int pieces = pieces_of(job->window, unit->sequence), first = first_piece(job->window, unit->sequence);
    return part_at(kv, job->parts, unit->part + number * pieces + piece - first);
}

static int within(int token, int piece) {
    token -= piece * PIECE;
    return token < 0 ? 0 : token > PIECE ? PIECE : token;
}

/* Queries [query, query + count) of a unit with one of its pieces. Returns whether any of them sees some of it. */
static int fill_tile(const attention_t *job, const unit_t *unit, int piece, int query, int count, float *parts,
                     tile_t *tile) {
    const kv_t *kv = job->kv;
    const sequence_t *sequence = unit->sequence;
    int any = 0;
    *tile = (tile_t){.sequence = sequence, .head = unit->head, .piece = piece, .count = count};
    for (int i = 0; i < count; i++) {
        const int row = row_of(kv, query + i), position = sequence->position + row;
        tile->query[i] = job->queries + (sequence->row + row) * job->stride +
                         (int64_t)head_of(kv, unit->head, query + i) * kv->head_dim;
        tile->from[i] = within(seen_from(job->window, position), piece);
        tile->to[i] = within(seen_to(sequence, row), piece);
        tile->part[i] = job->split ? split_part(job, unit, query + i, piece) : part_at(kv, parts, i);
        any |= tile->from[i] < tile->to[i];
    }
    return any;
}

static float *out_of(const attention_t *job, const unit_t *unit, int query) {
    const kv_t *kv = job->kv;
    const int64_t row = unit->sequence->row + row_of(kv, query);
    return job->out + (row * kv->heads + head_of(kv, unit->head, query)) * kv->head_dim;
}

static void attend_unit(void *context, int number, int thread) {
    const attention_t *job = context;
    const kv_t *kv = job->kv;
    const unit_t unit = find_unit(job, number);
    float *scores = job->threads + thread * thread_floats(kv), *parts = scores + TILE * PIECE;
    float *sums = parts + TILE * part_floats(kv);
    const int64_t wide = width(kv);
    tile_t tile;
    for (int q = 0; q < unit.count; q++) clear(part_at(kv, sums, q), wide);
    for (int piece = unit.first; piece < unit.last; piece++)
        for (int q = 0; q < unit.count; q += TILE) {
            const int count = unit.count - q < TILE ? unit.count - q : TILE;
            if (!fill_tile(job, &unit, piece, unit.query + q, count, parts, &tile)) continue;
            attend_tile(job, &tile, scores);
            for (int i = 0; !job->split && i < count; i++)
                if (tile.from[i] < tile.to[i]) join(part_at(kv, sums, q + i), tile.part[i], wide);
        }
    for (int q = 0; !job->split && q < unit.count; q++)
        finish(part_at(kv, sums, q), kv->head_dim, out_of(job, &unit, unit.query + q));
}

/* When split: join the pieces of one block's queries. */
static void join_block(void *context, int number, int thread) {
    const attention_t *job = context;
    const kv_t *kv = job->kv;
    attention_t whole = *job;
    whole.split = 0;
    const unit_t unit = find_unit(&whole, number);
    part_t *sum = part_at(kv, job->threads + thread * thread_floats(kv) + TILE * PIECE, 0);
    for (int q = unit.query; q < unit.query + unit.count; q++) {
        const int row = row_of(kv, q), position = unit.sequence->position + row;
        const int last = (seen_to(unit.sequence, row) - 1) / PIECE;
        clear(sum, width(kv));
        for (int piece = seen_from(job->window, position) / PIECE; piece <= last; piece++)
            join(sum, split_part(job, &unit, q, piece), width(kv));
        finish(sum, kv->head_dim, out_of(job, &unit, q));
    }
}

void attend(pool_t *pool, const kv_t *kv, int layer, int window, const sequence_t *sequences, int count,
            const float *queries, int64_t stride, float *out, float *scratch) {
    const int threads = pool_threads(pool), split = is_split(kv, sequences, count, threads);
    attention_t job = {kv, sequences, queries, out, scratch, scratch + threads * thread_floats(kv), stride,
                       layer, window, split};
    pool_run(pool, attend_unit, &job, attention_units(kv, window, sequences, count, threads));
    int blocks = 0;
    for (int s = 0; split && s < count; s++) blocks += units_of(kv, window, &sequences[s], 0);
    pool_run(pool, join_block, &job, blocks);
}
