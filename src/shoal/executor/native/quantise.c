/* Numbers as integers: x for the kernels with integer weights, and weights as a format packs them. */
#include "job.h"
#include "simd.h"
#include <float.h>
#include <math.h>

/* The largest integer that x may become: products with 127 must add up within 32 bits over all columns. */
int32_t activation_limit(int32_t format, int32_t cols) {
    const int by_row = format == INT8 || format == W8A8;
    const int64_t limit = INT32_MAX / (by_row ? 127 * (int64_t)cols : 128 * GROUP);
    const int64_t most = format == W8A8 ? 127 : 32767;
    return (int32_t)(limit < most ? limit : most);
}

/* The largest magnitude of a row. */
static float top_of(const float *x, int64_t cols) {
    vf most = splat(0);
    int64_t k = 0;
    for (; k + LANES <= cols; k += LANES) most = larger((vf)((vi)load(x + k) & 0x7fffffff), most);
    float top = 0;
    for (int l = 0; l < LANES; l++) top = most[l] > top ? most[l] : top;
    for (; k < cols; k++) top = fabsf(x[k]) > top ? fabsf(x[k]) : top;
    return top;
}

static void to_shorts(const float *x, int64_t cols, float to_int, int16_t *q) {
    int64_t k = 0;
    for (; k + LANES <= cols; k += LANES) store_i16(q + k, round_lanes(load(x + k) * splat(to_int)));
    for (; k < cols; k++) q[k] = (int16_t)lrintf(x[k] * to_int);
}

/* Returns what they add up to. */
static int32_t to_bytes(const float *x, int64_t cols, float to_int, int8_t *q) {
    vi sums = {0};
    int64_t k = 0;
    for (; k + LANES <= cols; k += LANES) {
        const vi values = round_lanes(load(x + k) * splat(to_int));
        sums += values;
        store_i8(q + k, values);
    }
    int32_t sum = sum_i32(sums);
    for (; k < cols; k++) sum += q[k] = (int8_t)lrintf(x[k] * to_int);
    return sum;
}

/* Numbers of 16 bits as their lower bytes, which have no sign, and their upper ones. */
static void to_planes(const float *x, int64_t cols, float to_int, int8_t *low, int8_t *high) {
    int64_t k = 0;
    for (; k + LANES <= cols; k += LANES) {
        const vi values = round_lanes(load(x + k) * splat(to_int));
        store_i8(low + k, values);
        store_i8(high + k, values >> 8);
    }
    for (; k < cols; k++) {
        const long value = lrintf(x[k] * to_int);
        low[k] = (int8_t)value;
        high[k] = (int8_t)(value >> 8);
    }
}

/* What row i of x is multiplied by to become integers; its scale is noted. */
static float to_integers(const job_t *job, int i) {
    const linear_t *layer = job->layer;
    const float limit = (float)activation_limit(layer->format, layer->cols);
    const float top = top_of(job->x + i * job->x_stride, layer->cols), factor = limit / top;
    const float to_int = factor <= FLT_MAX ? factor : 0;
    job->scratch->row_scales[i] = to_int > 0 ? top / limit : 0; /* a row of nothing, or of next to nothing, is zeros */
    return to_int;
}

void quantise_shorts(const job_t *job, int i, int16_t *to) {
    to_shorts(job->x + i * job->x_stride, job->layer->cols, to_integers(job, i), to);
}

void quantise_row(void *context, int i, int thread) {
    const job_t *job = context;
    (void)thread;
    const scratch_t *scratch = job->scratch;
    const int32_t format = job->layer->format;
    const int64_t cols = job->layer->cols, wide = quantised_stride(cols), narrow = bytes_stride(cols);
    const float *x = job->x + i * job->x_stride, to_int = to_integers(job, i);
    int16_t *shorts = scratch->quantised + i * wide;
    int8_t *bytes = (int8_t *)scratch->quantised + i * narrow;
    if (format == W8A8 && holds_bytes(scratch)) {
        scratch->unit_sums[i] = to_bytes(x, cols, to_int, bytes);
        memset(bytes + cols, 0, (size_t)(padded_cols(cols) - cols));
    } else if (format == INT8 && uses_tiles(scratch, format, job->m)) {
        to_planes(x, cols, to_int, bytes, bytes + job->m_padded * narrow);
    } else {
        to_shorts(x, cols, to_int, shorts);
        if (format == W8A8) memset(shorts + cols, 0, (size_t)(padded_cols(cols) - cols) * sizeof *shorts);
        if (is_grouped(format)) sum_units(job, i);
    }
}

/* ---- packing ---- */

void pack_int8(const float *w, int64_t rows, int64_t cols, int8_t *q, float *scales) {
    for (int64_t r = 0; r < rows; r++) {
        float top = 0;
        for (int64_t k = 0; k < cols; k++) top = fabsf(w[r * cols + k]) > top ? fabsf(w[r * cols + k]) : top;
        scales[r] = top / 127;
        const float to_int = top > 0 ? 127 / top : 0;
        for (int64_t k = 0; k < cols; k++) q[r * cols + k] = (int8_t)lrintf(w[r * cols + k] * to_int);
    }
}

/* To the nearest float16, ties to even; x is in its range. */
static float round_to_half(float x) {
    if (fabsf(x) < 0x1p-14f) return (x + 0.75f) - 0.75f; /* a multiple of 2⁻²⁴, as its smallest numbers are */
    uint32_t u;
    memcpy(&u, &x, 4);
    u = (u + 0xfff + ((u >> 13) & 1)) & ~(uint32_t)0x1fff;
    memcpy(&x, &u, 4);
    return x;
}

void pack_int4(const float *w, int64_t rows, int64_t cols, int32_t halves, uint8_t *q, float *scales) {
    for (int64_t g = 0; g < rows * cols / GROUP; g++) {
        const float *from = w + g * GROUP;
        float top = 0; /* the value of the largest magnitude, with its sign: it becomes -8 */
        for (int k = 0; k < GROUP; k++)
            if (fabsf(from[k]) > fabsf(top)) top = from[k];
        scales[g] = halves ? round_to_half(top / -8) : top / -8;
        const float to_int = scales[g] != 0 ? 1 / scales[g] : 0;
        for (int k = 0; k < GROUP; k++) {
            const long value = lrintf(from[k] * to_int) + 8;
            q[g * GROUP + k] = (uint8_t)(value > 15 ? 15 : value < 0 ? 0 : value);
        }
    }
}
