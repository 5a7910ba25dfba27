/* A linear layer: out[m][rows] = x[m][cols] · w[rows][cols]ᵀ + bias, with the weights in one of six formats. */
#pragma once
#include "pool.h"
#include <stdint.h>

enum { FP32, BF16, INT8, GROUPED4, GROUPED8, W8A8 };
#define PRODUCT_ROWS 32
#define GROUP 32 /* what pack_int4 gives one scale, and the most that a kernel does (grouped.c) */

typedef struct {
    int32_t rows, cols; /* what goes out, what comes in */
    int32_t format;
    int32_t group;       /* grouped: weights that share a scale; 16, or a multiple of 32 */
    const void *weights; /* [rows][cols]: float, bfloat16 or int8; grouped and w8a8: tiles (kernels/tiles.py) */
    const void *scales;  /* int8: float [rows]; w8a8: float [tiles][TILE]; grouped: [tiles][cols / group][TILE],
                          * float16 if `halves` */
    const float *bias;   /* [rows] or NULL */
    const void *minima;  /* grouped: as the scales, or NULL: a weight is scale · (integer - zero) + minimum */
    int32_t zero;
    int32_t halves;
} linear_t;

/* Another library's matrix product, out[m][rows] = x[m][cols] · wᵀ without bias, where that is faster: CPUs that
 * multiply matrices of bfloat16 in hardware. Returns 1, or 0 when it could not. */
typedef int (*product_fn)(const linear_t *layer, const float *x, int m, float *out);

/* What a linear layer does with its result. */
enum { SET, ADD };

/* Memory for one linear layer at a time. */
typedef struct {
    float *panels;     /* x, transposed in groups of LANES rows */
    int16_t *quantised; /* x as integers, rows quantised_stride apart, or of bytes bytes_stride */
    float *row_scales; /* one per row of x */
    int32_t *unit_sums; /* grouped: of x's integers (see sum_units), rows unit_sums_stride apart; w8a8: of rows */
    float *tiles;      /* per thread */
    int64_t tile_floats; /* of one thread */
    product_fn product; /* for bf16 with PRODUCT_ROWS rows of x or more; or NULL */
    float *products;    /* what it gives */
    int32_t extras;     /* instructions that may be used (cpu.h) */
} scratch_t;

int64_t scratch_tile_floats(int m);
/* Elements from one quantised row to the next: never a whole number of memory pages, or rows that are read side
 * by side would take each other's place in the first cache. */
static inline int64_t quantised_stride(int64_t cols) { return cols + 64; }
/* The same for rows of bytes: an odd number of cache lines. */
static inline int64_t bytes_stride(int64_t cols) { return ((cols + 63) / 64 | 1) * 64; }
static inline int64_t quantised_bytes(int64_t m, int64_t cols) { return (m + 16) * (cols + 128) * 2; }
static inline int64_t unit_sums_stride(int64_t cols) { return cols / 16; }
/* Whether x may lie in rows that are farther apart than they are long. */
static inline int takes_strides(int32_t format) { return format != FP32 && format != BF16; }
/* out[i * stride + r] = (or +=) the result times `factor`. Rows of x are x_stride apart, which is cols unless the
 * format takes strides. */
void linear(pool_t *pool, const linear_t *layer, const scratch_t *scratch, const float *x, int64_t x_stride, int m,
            float *out, int64_t stride, int how, float factor);

/* The format's own packing. Rows of zeros get scale 0 and stay zeros. int4 comes one to a byte, from 0 to
 * 15, with scales that are float16 where `halves`. */
void pack_int8(const float *w, int64_t rows, int64_t cols, int8_t *q, float *scales);
void pack_int4(const float *w, int64_t rows, int64_t cols, int32_t halves, uint8_t *q, float *scales);
int32_t activation_limit(int32_t format, int32_t cols);
