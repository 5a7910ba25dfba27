/* The blocks of a span, Llama's shape, as one call: norm, attention, norm, gated MLP, for rows of many sessions. */
#pragma once
#include "adapter.h"
#include "attention.h"
#include "linear.h"
#include "tape.h"

enum { SILU, GELU_TANH };

typedef struct {
    const float *attention_norm, *mlp_norm;    /* [hidden] */
    const float *after_attention, *after_mlp;  /* [hidden], norms of what is added; or NULL */
    const float *query_norm, *key_norm;        /* [head_dim], or NULL */
    linear_t qkv, out, gate_up, down;
    int32_t window;                            /* tokens that a token sees; 0: all */
    int32_t rope;                              /* which of the span's frequencies; -1: positions do not turn */
} layer_t;

typedef struct {
    int32_t hidden, ffn, rotary, activation;
    float epsilon, residual;                   /* what a block adds is multiplied by `residual` */
    const float *frequencies[2];               /* [rotary / 2] */
    float rope_scale[2];
    int32_t n_layers, unused;
    const layer_t *layers;
    const adapted_t *const *adapters;          /* of each, [n_layers] */
    const uint8_t *axes;                       /* [rotary / 2], which of a row's three positions turns each pair */
    kv_t kv;
} span_t;

typedef struct team team_t; /* threads and working memory; for one caller at a time */
team_t *team_new(int threads);
void team_free(team_t *team);
/* Give large products of bf16 to another library; NULL takes that back. */
void team_set_product(team_t *team, product_fn product);
int team_threads(const team_t *team);
/* Leave only those of the CPU's extras (cpu.h); which are left. For comparison: the bits stay the same. */
int32_t team_limit(team_t *team, int32_t extras);

/* Run layers [from, to) on hidden[rows][span->hidden], in place. Returns 0, or -1 when memory is short. */
int span_step(team_t *team, const span_t *span, int from, int to, const sequence_t *sequences, int count,
              float *hidden);
/* The same for one layer and one sequence, whose integer products are written on `tape` or taken from it. Their
 * weights are int8 or w8a8, and there is no adapter. The bits are those of span_step. */
int taped_step(team_t *team, const span_t *span, int layer, const sequence_t *sequence, float *hidden,
               const tape_t *tape);
/* out[m][rows] = x[m][cols] · wᵀ. Returns as above. */
int apply_linear(team_t *team, const linear_t *layer, const float *x, int m, float *out);
/* out = norm(x) · weight over rows of `cols`; out may be x. */
void rms_norm(const float *x, int64_t rows, int64_t cols, const float *weight, float epsilon, float *out);
