/* Products of integers with all that goes in and comes out kept, or with what comes out taken from elsewhere. Sums
 * are exact in 32 bits, so they are those of the kernels that are fast, whatever the order. */
#include "tape.h"
#include "job.h"

#define DEPTH 1024 /* columns of a row of weights that are side by side at a time; whole quads */

typedef struct {
    job_t job;
    const tape_t *tape;
    int which;
} taped_t;

static void input_row(void *context, int i, int thread) {
    const taped_t *taped = context;
    (void)thread;
    quantise_shorts(&taped->job, i, taped->tape->inputs[taped->which] + i * (int64_t)taped->job.layer->cols);
}

/* Columns [k, k + depth) of a row of weights, side by side: where they lie, or copied to `row`. */
static const int8_t *weights_at(const linear_t *layer, int r, int64_t k, int depth, int8_t *row) {
    const int8_t *w = layer->weights;
    if (layer->format == INT8) return w + r * (int64_t)layer->cols + k;
    w += r / TILE * (TILE * padded_cols(layer->cols)) + k * TILE + r % TILE * QUAD;
    for (int c = 0; c < depth; c++) row[c] = w[c / QUAD * (QUAD * TILE) + c % QUAD];
    return row;
}

static void sum_row(const taped_t *taped, int r) {
    const linear_t *layer = taped->job.layer;
    const int64_t cols = layer->cols;
    int32_t *sums = taped->tape->sums[taped->which];
    for (int i = 0; i < taped->job.m; i++) sums[i * (int64_t)layer->rows + r] = 0;
    for (int64_t k = 0; k < cols; k += DEPTH) {
        int8_t row[DEPTH];
        const int depth = (int)(cols - k < DEPTH ? cols - k : DEPTH);
        const int8_t *w = weights_at(layer, r, k, depth, row);
        for (int i = 0; i < taped->job.m; i++) {
            const int16_t *x = taped->tape->inputs[taped->which] + i * cols + k;
            int32_t sum = 0;
            for (int c = 0; c < depth; c++) sum += (int32_t)w[c] * x[c];
            sums[i * (int64_t)layer->rows + r] += sum;
        }
    }
}

static void sums_chunk(void *context, int chunk, int thread) {
    const taped_t *taped = context;
    const job_t *job = &taped->job;
    const linear_t *layer = job->layer;
    const float *scales = layer->scales;
    (void)thread;
    for (int r = chunk * INT_CHUNK; r < least((chunk + 1) * INT_CHUNK, layer->rows); r++) {
        if (!taped->tape->given) sum_row(taped, r);
        for (int i = 0; i < job->m; i++) {
            const int32_t sum = taped->tape->sums[taped->which][i * (int64_t)layer->rows + r];
            put(job, i, r, (float)sum * (scales[r] * job->scratch->row_scales[i]));
        }
    }
}

void taped_linear(pool_t *pool, const linear_t *layer, const scratch_t *scratch, const tape_t *tape, int which,
                  const float *x, int64_t x_stride, int m, float *out, int64_t stride, int how, float factor) {
    taped_t taped = {{layer, scratch, x, x_stride, out, stride, m, how, factor, 0, 0}, tape, which};
    pool_run(pool, input_row, &taped, m);
    pool_run(pool, sums_chunk, &taped, (layer->rows + INT_CHUNK - 1) / INT_CHUNK);
}
