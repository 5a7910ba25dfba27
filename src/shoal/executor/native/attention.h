/* Attention of several sessions at once over KV that lies in pages. */
#pragma once
#include "pool.h"
#include <stdint.h>

#define PAGE 16 /* tokens of one page */

/* One session's rows in a forward. */
typedef struct {
    int32_t row;          /* its first row */
    int32_t rows;
    int32_t position;     /* tokens that it has cached before */
    int32_t adapter;      /* which of the span's, from 1; 0: none */
    const int32_t *pages; /* which page holds tokens [16 i, 16 i + 16) */
    const int32_t *ends;  /* of each row, the position behind the last that it sees; NULL: behind its own */
    const int32_t *rotary_positions; /* of each row, the three positions that turn it; NULL: its own does */
} sequence_t;

/* A layer's part of a page, in order, each starting at a multiple of 64 bytes:
 *   keys   [kv_heads][head_dim][PAGE], so that one load brings 16 tokens
 *   values [kv_heads][PAGE][width], width = head_dim up to a multiple of 16, zeros beyond
 *   for int8, one float scale for each token of each head: keys' [kv_heads][PAGE], then values' */
typedef struct {
    int32_t heads, kv_heads, head_dim;
    int32_t format;         /* BF16 or INT8 */
    float scale;            /* of the scores */
    int32_t unused;
    uint8_t *arena;         /* every page */
    int64_t page_bytes;     /* of all layers */
} kv_t;

int64_t kv_layer_bytes(const kv_t *kv);

/* Put one token's key and value, [kv_heads][head_dim] each, into its place. */
void kv_put(const kv_t *kv, int layer, const sequence_t *sequence, int position, const float *key,
            const float *value);

/* out[row][heads · head_dim] for queries that lie `stride` floats apart. window > 0: a token sees that many,
 * itself included. scratch: attention_floats of them. */
void attend(pool_t *pool, const kv_t *kv, int layer, int window, const sequence_t *sequences, int count,
            const float *queries, int64_t stride, float *out, float *scratch);
int64_t attention_floats(const kv_t *kv, const sequence_t *sequences, int count, int threads);
/* Units of work that the threads share. */
int attention_units(const kv_t *kv, int window, const sequence_t *sequences, int count, int threads);
