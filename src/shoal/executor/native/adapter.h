/* Adapters: what a session adds to the linear layers of the blocks that it shares with others (Hu et al., "LoRA"). */
#pragma once
#include <stdint.h>

#define MOST_RANK 64
#define MOST_PARTS 3 /* of one linear layer: queries, keys and values */

enum { ADAPT_QKV, ADAPT_OUT, ADAPT_GATE_UP, ADAPT_DOWN, ADAPTABLE };

/* out[first + i] += up · (down · x) for i < rows */
typedef struct {
    const float *down; /* [rank][cols] */
    const float *up;   /* [rank][stride], turned, with the adapter's scale in it; zeros beyond rows */
    int32_t rank, cols;
    int32_t first, rows;
    int64_t stride;    /* rows, up to a multiple of 16 */
} low_rank_t;

/* What an adapter has for one layer. */
typedef struct {
    low_rank_t parts[ADAPTABLE][MOST_PARTS];
    int32_t counts[ADAPTABLE];
} adapted_t;

/* out += factor · what an adapter adds for one row. In one order, whatever other rows there are. */
void adapt(const adapted_t *adapted, int which, const float *x, float *out, float factor);
