/* A unit of work is up to four queries that share a head's keys and values. Scores of the whole context are kept,
 * then the softmax, then the weighted sum, each token by token in order: a query's result does not depend on the
 * queries beside it. */
#include "attention.h"
#include "elementwise.h"
#include "linear.h"
#include <math.h>

#define QUERIES 4

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

typedef struct {
    const kv_t *kv;
    const sequence_t *sequences;
    const float *queries;
    float *out, *scores;
    int64_t stride, thread_floats;
    int layer, window;
} attention_t;

typedef struct {
    const float *query[QUERIES];
    float *out[QUERIES];
    int from[QUERIES], to[QUERIES]; /* tokens that each query sees */
    int count;
} tile_t;

int64_t score_floats(int longest) { return QUERIES * (int64_t)((longest + 2 * PAGE) & ~(PAGE - 1)); }

INLINE v16 load16_kv(const void *p, int64_t at, int int8) {
    if (!int8) return load16_bf16((const uint16_t *)p + at);
#if LANES == 16
    return (v16){load_i8((const int8_t *)p + at)};
#else
    return (v16){load_i8((const int8_t *)p + at), load_i8((const int8_t *)p + at + 8)};
#endif
}
INLINE v16 splat16(float x) {
#if LANES == 16
    return (v16){splat(x)};
#else
    return (v16){splat(x), splat(x)};
#endif
}
INLINE v16 times16(v16 a, v16 b) {
#if LANES == 16
    return (v16){a.v * b.v};
#else
    return (v16){a.a * b.a, a.b * b.b};
#endif
}

INLINE void score_pages(const attention_t *job, const sequence_t *sequence, const tile_t *tile, int head, int first,
                        int last, float *scores, int64_t row, int n, int int8) {
    const kv_t *kv = job->kv;
    const int dims = kv->head_dim;
    const v16 scale = splat16(kv->scale);
    for (int page = first; page < last; page++) {
        const uint8_t *base = layer_of(kv, job->layer, sequence->pages[page]);
        const int64_t at = (int64_t)head * dims * PAGE;
        v16 acc[QUERIES];
        UNROLL for (int i = 0; i < n; i++) acc[i] = zero16();
        for (int d = 0; d < dims; d++) {
            const v16 keys = load16_kv(base, at + d * PAGE, int8);
            UNROLL for (int i = 0; i < n; i++) acc[i] = fma16(splat16(tile->query[i][d]), keys, acc[i]);
        }
        v16 factor = scale;
        if (int8) {
            const float *scales = (const float *)(base + keys_bytes(kv) + values_bytes(kv)) + head * PAGE;
            factor = times16(scale, load16(scales));
        }
        UNROLL for (int i = 0; i < n; i++)
            store16(scores + i * row + (page - first) * PAGE, times16(acc[i], factor));
    }
}

/* Scores of tokens [from, to) become weights that add up to 1; all others up to `end` become 0. */
static void softmax(float *scores, int from, int to, int end) {
    float top = scores[from];
    for (int t = from; t < to; t++) top = scores[t] > top ? scores[t] : top;
    for (int t = 0; t < from; t++) scores[t] = -INFINITY;
    for (int t = to; t < end; t++) scores[t] = -INFINITY;
    float sum = 0;
    for (int t = 0; t < end; t += LANES) {
        const vf weights = exponential(load(scores + t) - splat(top));
        store(scores + t, weights);
    }
    for (int t = from; t < to; t++) sum += scores[t];
    const vf part = splat(1 / sum);
    for (int t = 0; t < end; t += LANES) store(scores + t, load(scores + t) * part);
}

INLINE void weigh_values(const attention_t *job, const sequence_t *sequence, const tile_t *tile, int head, int first,
                         int end, const float *scores, int64_t row, int n, int int8) {
    const kv_t *kv = job->kv;
    const int64_t wide = width(kv), keys = keys_bytes(kv), place = (int64_t)head * PAGE * wide;
    for (int64_t d = 0; d < wide; d += 16) {
        v16 acc[QUERIES];
        UNROLL for (int i = 0; i < n; i++) acc[i] = zero16();
        for (int t = 0; t < end; t += PAGE) {
            const uint8_t *base = layer_of(kv, job->layer, sequence->pages[first + t / PAGE]) + keys;
            const int slots = end - t < PAGE ? end - t : PAGE;
            for (int slot = 0; slot < slots; slot++) {
                const v16 values = load16_kv(base, place + slot * wide + d, int8);
                UNROLL for (int i = 0; i < n; i++) acc[i] = fma16(splat16(scores[i * row + t + slot]), values, acc[i]);
            }
        }
        float part[16];
        const int64_t left = kv->head_dim - d < 16 ? kv->head_dim - d : 16;
        UNROLL for (int i = 0; i < n; i++) {
            store16(part, acc[i]);
            memcpy(tile->out[i] + d, part, (size_t)left * sizeof *part);
        }
    }
}

INLINE void attend_tile(const attention_t *job, const sequence_t *sequence, const tile_t *tile, int head,
                        float *scores, int n, int int8) {
    int from = tile->from[0], to = tile->to[0];
    for (int i = 1; i < n; i++) {
        from = tile->from[i] < from ? tile->from[i] : from;
        to = tile->to[i] > to ? tile->to[i] : to;
    }
    const kv_t *kv = job->kv;
    const int first = from / PAGE, last = (to + PAGE - 1) / PAGE, begin = first * PAGE;
    const int64_t row = (int64_t)(last - first) * PAGE;
    score_pages(job, sequence, tile, head, first, last, scores, row, n, int8);
    for (int i = 0; i < n; i++) {
        softmax(scores + i * row, tile->from[i] - begin, tile->to[i] - begin, (int)row);
        for (int page = first; int8 && page < last; page++) {
            const uint8_t *base = layer_of(kv, job->layer, sequence->pages[page]);
            const float *scales = (const float *)(base + keys_bytes(kv) + values_bytes(kv) + scales_bytes(kv));
            float *weights = scores + i * row + (page - first) * PAGE;
            for (int t = 0; t < PAGE; t++)
                if (weights[t] != 0) weights[t] *= scales[head * PAGE + t]; /* an unused place may hold anything */
        }
    }
    weigh_values(job, sequence, tile, head, first, to - begin, scores, row, n, int8);
}

static void attend_unit(void *context, int unit, int thread) {
    const attention_t *job = context;
    const kv_t *kv = job->kv;
    const int group = kv->heads / kv->kv_heads;
    const sequence_t *sequence = job->sequences;
    int tiles = (sequence->rows * group + QUERIES - 1) / QUERIES;
    while (unit >= tiles * kv->kv_heads) {
        unit -= tiles * kv->kv_heads;
        sequence++;
        tiles = (sequence->rows * group + QUERIES - 1) / QUERIES;
    }
    const int head = unit % kv->kv_heads, first = unit / kv->kv_heads * QUERIES;
    tile_t tile = {.count = 0};
    for (int q = first; q < first + QUERIES && q < sequence->rows * group; q++) {
        const int row = q / group, h = head * group + q % group, position = sequence->position + row;
        const int i = tile.count++;
        tile.query[i] = job->queries + (sequence->row + row) * job->stride + (int64_t)h * kv->head_dim;
        tile.out[i] = job->out + (int64_t)(sequence->row + row) * kv->heads * kv->head_dim + (int64_t)h * kv->head_dim;
        tile.to[i] = position + 1;
        tile.from[i] = job->window && position + 1 > job->window ? position + 1 - job->window : 0;
    }
    float *scores = job->scores + thread * job->thread_floats;
    const int int8 = kv->format == INT8;
#define CASE(n)                                                                                                     \
    case n:                                                                                                         \
        if (int8) attend_tile(job, sequence, &tile, head, scores, n, 1);                                            \
        else attend_tile(job, sequence, &tile, head, scores, n, 0);                                                 \
        break
    switch (tile.count) {
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
    }
}

void attend(pool_t *pool, const kv_t *kv, int layer, int window, const sequence_t *sequences, int count,
            const float *queries, int64_t stride, float *out, float *scores, int64_t thread_floats) {
    attention_t job = {kv, sequences, queries, out, scores, stride, thread_floats, layer, window};
    const int group = kv->heads / kv->kv_heads;
    int units = 0;
    for (int s = 0; s < count; s++) units += (sequences[s].rows * group + QUERIES - 1) / QUERIES * kv->kv_heads;
    pool_run(pool, attend_unit, &job, units);
}
