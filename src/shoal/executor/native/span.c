#include "span.h"
#include "angles.h"
#include "cpu.h"
#include "elementwise.h"
#include <math.h>
#include <stdlib.h>

struct team {
    pool_t *pool;
    scratch_t scratch;
    int64_t sizes[16]; /* bytes of each buffer below */
    float *normed, *qkv, *attended, *gated, *cosines, *attention;
};

team_t *team_new(int threads) {
    team_t *team = calloc(1, sizeof *team);
    if (!team) return 0;
    team->pool = pool_new(threads);
    if (!team->pool) {
        free(team);
        return 0;
    }
    team->scratch.extras = cpu_extras();
    return team;
}

int32_t team_limit(team_t *team, int32_t extras) { return team->scratch.extras &= extras; }

void team_set_product(team_t *team, product_fn product) { team->scratch.product = product; }

int team_threads(const team_t *team) { return pool_threads(team->pool); }

void team_free(team_t *team) {
    if (!team) return;
    pool_free(team->pool);
    void *all[] = {team->scratch.panels, team->scratch.quantised, team->scratch.row_scales,
                   team->scratch.tiles,  team->normed,            team->qkv,
                   team->attended,       team->gated,             team->cosines,
                   team->attention,         team->scratch.products, team->scratch.unit_sums};
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    free(team);
}

/* Make *buffer at least `bytes` long. What it held is lost. */
static int grow(void *buffer, int64_t *size, int64_t bytes) {
    void **at = buffer;
    bytes = (bytes + 63) & ~(int64_t)63;
    if (*size >= bytes) return 0;
    free(*at);
    *at = aligned_alloc(64, (size_t)bytes);
    *size = *at ? bytes : 0;
    return *at ? 0 : -1;
}

static int grow_scratch(team_t *team, int m, int64_t rows, int64_t cols) {
    scratch_t *scratch = &team->scratch;
    const int64_t threads = pool_threads(team->pool), padded = m + 16;
    scratch->tile_floats = (scratch_tile_floats(m) + 15) & ~(int64_t)15;
    return grow(&scratch->panels, &team->sizes[0], padded * cols * 4) |
           grow(&scratch->quantised, &team->sizes[1], quantised_bytes(m, cols)) |
           grow(&scratch->row_scales, &team->sizes[2], padded * 4) |
           grow(&scratch->unit_sums, &team->sizes[11], padded * (unit_sums_stride(cols) + 1) * 4) |
           grow(&scratch->tiles, &team->sizes[3], threads * scratch->tile_floats * 4) |
           grow(&scratch->products, &team->sizes[10], scratch->product ? m * rows * 4 : 0);
}

void rms_norm(const float *x, int64_t rows, int64_t cols, const float *weight, float epsilon, float *out) {
    for (int64_t i = 0; i < rows; i++, x += cols, out += cols) {
        v16 squares = zero16();
        int64_t k = 0;
        for (; k + 16 <= cols; k += 16) squares = fma16(load16(x + k), load16(x + k), squares);
        float sum = sum16(squares);
        for (; k < cols; k++) sum += x[k] * x[k];
        const float factor = 1 / sqrtf(sum / (float)cols + epsilon);
        for (k = 0; k + LANES <= cols; k += LANES) store(out + k, load(x + k) * splat(factor) * load(weight + k));
        for (; k < cols; k++) out[k] = x[k] * factor * weight[k];
    }
}

typedef struct {
    const span_t *span;
    const layer_t *layer;
    team_t *team;
    const sequence_t *sequences;
    float *hidden;
    const float *weight;
    int64_t qkv_width;
    int index; /* of the layer */
    int adapted; /* whether any sequence has an adapter */
    const tape_t *tape; /* of one layer's products; or NULL */
} step_t;

static void norm_row(void *context, int row, int thread) {
    const step_t *step = context;
    (void)thread;
    const int64_t at = (int64_t)row * step->span->hidden;
    rms_norm(step->hidden + at, 1, step->span->hidden, step->weight, step->span->epsilon, step->team->normed + at);
}

/* hidden += residual · norm(normed), for models that norm what they add */
static void add_normed_row(void *context, int row, int thread) {
    const step_t *step = context;
    (void)thread;
    const int64_t hidden = step->span->hidden, at = row * hidden;
    float *added = step->team->normed + at, *to = step->hidden + at;
    rms_norm(added, 1, hidden, step->weight, step->span->epsilon, added);
    for (int64_t k = 0; k < hidden; k++) to[k] += added[k] * step->span->residual;
}

/* What a linear layer has given, and of what. */
typedef struct {
    const step_t *step;
    int which;
    const float *x;
    float *out;
    int64_t x_stride, stride;
    float factor;
} adapting_t;

static void rotate(float *x, const float *cosines, const float *sines, int half) {
    for (int d = 0; d < half; d++) {
        const float a = x[d], b = x[d + half];
        x[d] = a * cosines[d] - b * sines[d];
        x[d + half] = b * cosines[d] + a * sines[d];
    }
}

static const sequence_t *sequence_of(const sequence_t *sequences, int row) {
    while (row >= sequences->row + sequences->rows) sequences++;
    return sequences;
}

static void adapt_row(void *context, int row, int thread) {
    const adapting_t *adapting = context;
    const step_t *step = adapting->step;
    (void)thread;
    const int adapter = sequence_of(step->sequences, row)->adapter;
    if (adapter)
        adapt(&step->span->adapters[adapter - 1][step->index], adapting->which, adapting->x + row * adapting->x_stride,
              adapting->out + row * adapting->stride, adapting->factor);
}

/* Add what sessions' adapters add to a linear layer's rows. */
static void adapt_rows(const step_t *step, int which, const float *x, int64_t x_stride, int rows, float *out,
                       int64_t stride, float factor) {
    adapting_t adapting = {step, which, x, out, x_stride, stride, factor};
    if (step->adapted) pool_run(step->team->pool, adapt_row, &adapting, rows);
}

static inline void turn_pair(float angle, float scale, float *cosine, float *sine) {
    float s, c;
    sine_cosine(angle, &s, &c);
    *cosine = c * scale;
    *sine = s * scale;
}

/* cosines[rope][row][rotary / 2], then sines in the same way */
static void angle_row(void *context, int row, int thread) {
    const step_t *step = context;
    (void)thread;
    const span_t *span = step->span;
    const sequence_t *sequence = sequence_of(step->sequences, row);
    const int half = span->rotary / 2, at = row - sequence->row, position = sequence->position + at;
    const int32_t *three = sequence->rotary_positions ? sequence->rotary_positions + 3 * (int64_t)at : NULL;
    for (int rope = 0; rope < 2; rope++) {
        const float *frequencies = span->frequencies[rope], scale = span->rope_scale[rope];
        if (!frequencies) continue;
        float *to = step->team->cosines + ((int64_t)row * 2 + rope) * 2 * half;
        if (three)
            for (int d = 0; d < half; d++)
                turn_pair((float)three[span->axes[d]] * frequencies[d], scale, &to[d], &to[half + d]);
        else
            for (int d = 0; d < half; d++) turn_pair((float)position * frequencies[d], scale, &to[d], &to[half + d]);
    }
}

/* Norm and turn a row's queries and keys; put its key and value into the pages. */
static void place_row(void *context, int row, int thread) {
    const step_t *step = context;
    (void)thread;
    const span_t *span = step->span;
    const layer_t *layer = step->layer;
    const sequence_t *sequence = sequence_of(step->sequences, row);
    const int heads = span->kv.heads, kv_heads = span->kv.kv_heads, dims = span->kv.head_dim;
    const int half = span->rotary / 2;
    float *qkv = step->team->qkv + row * step->qkv_width;
    if (layer->query_norm) rms_norm(qkv, heads, dims, layer->query_norm, span->epsilon, qkv);
    float *key = qkv + (int64_t)heads * dims;
    if (layer->key_norm) rms_norm(key, kv_heads, dims, layer->key_norm, span->epsilon, key);
    if (layer->rope >= 0) {
        const float *cosines = step->team->cosines + ((int64_t)row * 2 + layer->rope) * 2 * half;
        for (int h = 0; h < heads + kv_heads; h++) rotate(qkv + (int64_t)h * dims, cosines, cosines + half, half);
    }
    kv_put(&span->kv, step->index, sequence, sequence->position + row - sequence->row, key,
           key + (int64_t)kv_heads * dims);
}

/* gated[row][ffn] = act(gate) · up, from [row][gate, up], in place */
static void gate_row(void *context, int row, int thread) {
    const step_t *step = context;
    (void)thread;
    const int64_t ffn = step->span->ffn;
    float *gate = step->team->gated + row * 2 * ffn;
    const float *up = gate + ffn;
    const int gelu = step->span->activation == GELU_TANH;
    int64_t k = 0;
    for (; k + LANES <= ffn; k += LANES) {
        const vf x = load(gate + k);
        store(gate + k, (gelu ? gelu_tanh(x) : silu(x)) * load(up + k));
    }
    for (; k < ffn; k++) {
        const vf x = splat(gate[k]);
        gate[k] = (gelu ? gelu_tanh(x) : silu(x))[0] * up[k];
    }
}

/* Rows move together, for who takes no strides. */
static void join_rows(float *gated, int rows, int64_t ffn) {
    for (int row = 1; row < rows; row++)
        memmove(gated + row * ffn, gated + 2 * row * ffn, (size_t)ffn * sizeof *gated);
}

/* One of the layer's four products, by the tape where there is one. */
static void multiply(const step_t *step, const linear_t *layer, int which, const float *x, int64_t x_stride, int rows,
                     float *out, int64_t stride, int how, float factor) {
    team_t *team = step->team;
    if (step->tape)
        taped_linear(team->pool, layer, &team->scratch, step->tape, which, x, x_stride, rows, out, stride, how, factor);
    else linear(team->pool, layer, &team->scratch, x, x_stride, rows, out, stride, how, factor);
}

/* What a block adds: straight onto hidden, or by way of a norm. Rows of x are `stride` apart, as linear has it. */
static void add_linear(const step_t *step, const linear_t *layer, int which, const float *after, const float *x,
                       int64_t stride, int rows) {
    team_t *team = step->team;
    const int64_t hidden = step->span->hidden;
    if (!after) {
        multiply(step, layer, which, x, stride, rows, step->hidden, hidden, ADD, step->span->residual);
        adapt_rows(step, which, x, stride, rows, step->hidden, hidden, step->span->residual);
        return;
    }
    multiply(step, layer, which, x, stride, rows, team->normed, hidden, SET, 1);
    adapt_rows(step, which, x, stride, rows, team->normed, hidden, 1);
    step_t norm = *step;
    norm.weight = after;
    pool_run(team->pool, add_normed_row, &norm, rows);
}

static void run_layer(step_t *step, int rows, int count) {
    const span_t *span = step->span;
    const layer_t *layer = step->layer;
    team_t *team = step->team;
    step->weight = layer->attention_norm;
    pool_run(team->pool, norm_row, step, rows);
    multiply(step, &layer->qkv, ADAPT_QKV, team->normed, span->hidden, rows, team->qkv, step->qkv_width, SET, 1);
    adapt_rows(step, ADAPT_QKV, team->normed, span->hidden, rows, team->qkv, step->qkv_width, 1);
    pool_run(team->pool, place_row, step, rows);
    attend(team->pool, &span->kv, step->index, layer->window, step->sequences, count, team->qkv, step->qkv_width,
           team->attended, team->attention);
    add_linear(step, &layer->out, ADAPT_OUT, layer->after_attention, team->attended, layer->out.cols, rows);
    step->weight = layer->mlp_norm;
    pool_run(team->pool, norm_row, step, rows);
    multiply(step, &layer->gate_up, ADAPT_GATE_UP, team->normed, span->hidden, rows, team->gated,
             2 * (int64_t)span->ffn, SET, 1);
    adapt_rows(step, ADAPT_GATE_UP, team->normed, span->hidden, rows, team->gated, 2 * (int64_t)span->ffn, 1);
    pool_run(team->pool, gate_row, step, rows);
    const int apart = takes_strides(layer->down.format);
    if (!apart) join_rows(team->gated, rows, span->ffn);
    add_linear(step, &layer->down, ADAPT_DOWN, layer->after_mlp, team->gated,
               apart ? 2 * (int64_t)span->ffn : span->ffn, rows);
}

static int run_layers(team_t *team, const span_t *span, int from, int to, const sequence_t *sequences, int count,
                      float *hidden, const tape_t *tape) {
    int rows = 0, adapted = 0;
    for (int s = 0; s < count; s++) {
        rows += sequences[s].rows;
        adapted |= sequences[s].adapter;
    }
    const kv_t *kv = &span->kv;
    const int64_t attended = (int64_t)kv->heads * kv->head_dim, qkv = attended + 2 * (int64_t)kv->kv_heads * kv->head_dim;
    int64_t cols = span->hidden > span->ffn ? span->hidden : span->ffn;
    cols = attended > cols ? attended : cols;
    const int64_t rows_out = 2 * (int64_t)span->ffn > qkv ? 2 * (int64_t)span->ffn : qkv;
    const int64_t attention = attention_floats(kv, sequences, count, pool_threads(team->pool));
    if (grow_scratch(team, rows, rows_out > cols ? rows_out : cols, cols) | grow(&team->normed, &team->sizes[4], (int64_t)rows * span->hidden * 4) |
        grow(&team->qkv, &team->sizes[5], rows * qkv * 4) |
        grow(&team->attended, &team->sizes[6], rows * attended * 4) |
        grow(&team->gated, &team->sizes[7], (int64_t)rows * span->ffn * 8) |
        grow(&team->cosines, &team->sizes[8], (int64_t)rows * span->rotary * 8) |
        grow(&team->attention, &team->sizes[9], attention * 4))
        return -1;
    step_t step = {span, 0, team, sequences, hidden, 0, qkv, 0, adapted, tape};
    pool_begin(team->pool);
    pool_run(team->pool, angle_row, &step, rows);
    for (int layer = from; layer < to; layer++) {
        step.layer = &span->layers[layer];
        step.index = layer;
        run_layer(&step, rows, count);
    }
    pool_end(team->pool);
    return 0;
}

int span_step(team_t *team, const span_t *span, int from, int to, const sequence_t *sequences, int count,
              float *hidden) {
    return run_layers(team, span, from, to, sequences, count, hidden, 0);
}

int taped_step(team_t *team, const span_t *span, int layer, const sequence_t *sequence, float *hidden,
               const tape_t *tape) {
    return run_layers(team, span, layer, layer + 1, sequence, 1, hidden, tape);
}

int apply_linear(team_t *team, const linear_t *layer, const float *x, int m, float *out) {
    if (grow_scratch(team, m, layer->rows, layer->cols)) return -1;
    pool_begin(team->pool);
    linear(team->pool, layer, &team->scratch, x, layer->cols, m, out, layer->rows, SET, 1);
    pool_end(team->pool);
    return 0;
}
