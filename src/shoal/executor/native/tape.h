/* The integer products of one block, laid open: what a proof of them is about (trust/proofs). */
#pragma once
#include "adapter.h"
#include "linear.h"

typedef struct {
    int16_t *inputs[ADAPTABLE]; /* [rows][cols]: x as integers */
    int32_t *sums[ADAPTABLE];   /* [rows][the matrix's rows]: before any scale */
    int32_t given;              /* whether the sums are there already, as somebody else says that they are: then
                                 * nothing is multiplied, and no weight is read */
    int32_t unused;
} tape_t;

/* As linear, for weights in int8 or w8a8 and rows of one sequence. Inputs are always written. */
void taped_linear(pool_t *pool, const linear_t *layer, const scratch_t *scratch, const tape_t *tape, int which,
                  const float *x, int64_t x_stride, int m, float *out, int64_t stride, int how, float factor);
