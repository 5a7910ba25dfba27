/* One linear layer under way: what its kernels are given. */
#pragma once
#include "linear.h"

#define INT_CHUNK 64 /* rows of integer weights in one chunk of work; whole tiles */
#define TILE 16      /* rows of weights in groups that lie interleaved */

typedef struct {
    const linear_t *layer;
    const scratch_t *scratch;
    const float *x;
    float *out;
    int64_t stride;
    int m, how;
    float factor;
} job_t;

static inline int least(int a, int b) { return a < b ? a : b; }

static inline void put(const job_t *job, int i, int r, float value) {
    const float *bias = job->layer->bias;
    float *to = job->out + i * job->stride + r;
    value = (bias ? value + bias[r] : value) * job->factor;
    *to = job->how == ADD ? *to + value : value;
}

/* Weights in groups (grouped.c). sum_units: of row i of x, as integers, what its units of 16 or 32 add up to. */
static inline int is_grouped(int32_t format) { return format == GROUPED4 || format == GROUPED8; }
void sum_units(const job_t *job, int i);
void grouped_chunk(void *context, int chunk, int thread);
