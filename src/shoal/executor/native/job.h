/* One linear layer under way: what its kernels are given. */
#pragma once
#include "linear.h"

#define INT_CHUNK 64 /* rows of integer weights in one chunk of work; whole tiles */
#define TILE 16      /* rows of weights that lie interleaved */
#define QUAD 4       /* w8a8: columns of a row that lie side by side */
#define TILE_ROWS 9  /* rows of x from which on AMX is ahead */

typedef struct {
    const linear_t *layer;
    const scratch_t *scratch;
    const float *x;
    int64_t x_stride;
    float *out;
    int64_t stride;
    int m, how;
    float factor;
    int chunk_rows; /* by AMX: rows of weights in a chunk */
    int m_padded;   /* m in whole tiles: int8's upper bytes lie so many rows behind the lower ones */
} job_t;

static inline int least(int a, int b) { return a < b ? a : b; }

static inline void put(const job_t *job, int i, int r, float value) {
    const float *bias = job->layer->bias;
    float *to = job->out + i * job->stride + r;
    value = (bias ? value + bias[r] : value) * job->factor;
    *to = job->how == ADD ? *to + value : value;
}

/* w8a8 (w8a8.c): columns in whole steps of AMX, and tiles of weights. holds_bytes: whether x is in bytes there. */
static inline int64_t padded_cols(int64_t cols) { return (cols + 63) & ~(int64_t)63; }
static inline int tiles_of(int rows) { return (rows + TILE - 1) / TILE; }
int holds_bytes(const scratch_t *scratch);
void bytes_chunk(void *context, int chunk, int thread);
/* AMX (amx.c): whether it is used for so many rows of x, rows of weights in a chunk, and memory of a thread. */
int uses_tiles(const scratch_t *scratch, int32_t format, int m);
int amx_rows(int32_t format, int rows, int threads);
int64_t amx_floats(int m);
void amx_chunk(void *context, int chunk, int thread);
/* x as integers (quantise.c), each row with a scale: of 16 bits, or in bytes for the kernel that takes it. */
void quantise_row(void *context, int i, int thread);
/* The same for int8 and w8a8, to 16 bits wherever they are to go. */
void quantise_shorts(const job_t *job, int i, int16_t *to);
/* Weights in groups (grouped.c). sum_units: of row i of x, as integers, what its units of 16 or 32 add up to. */
static inline int is_grouped(int32_t format) { return format == GROUPED4 || format == GROUPED8; }
void sum_units(const job_t *job, int i);
void grouped_chunk(void *context, int chunk, int thread);
