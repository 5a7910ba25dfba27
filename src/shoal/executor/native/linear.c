/* Six formats, five kernels.
 *
 * Float weights with few rows of x: dot products along the weights' rows, at the speed of memory. Float weights
 * with more rows: x is transposed into panels of LANES rows, weights are widened to float once per block that
 * stays in the cache, and the inner loop is LANES × TILE fused multiply-adds. Integer weights: x is quantised
 * per row, and 16-bit products are summed exactly in 32 bits, so a row's result does not depend on the other
 * rows, on the number of threads, or on the machine. Weights in groups: see grouped.c; x in 8 bits: w8a8.c. */
#include "job.h"
#include "simd.h"
#include <math.h>
#include <stddef.h>

#define DOT_ROWS 8      /* most rows of x that are worth dot products */
#define CHUNK 48        /* rows of weights in one chunk of work; a multiple of both tile heights */
#define DEPTH 256       /* columns of one block of widened weights */
#define AHEAD 256       /* columns fetched ahead of their use: one block */
#define DEPTH_STRIDE (DEPTH + 16)
#define INT_DEPTH 2048  /* columns of x that a group of rows keeps in the first cache */

/* ---- few rows of x, float weights ---- */

INLINE v16 load16_weights(const void *w, int64_t at, int bf16) {
    return bf16 ? load16_bf16((const uint16_t *)w + at) : load16((const float *)w + at);
}
INLINE float weight(const void *w, int64_t at, int bf16) {
    return bf16 ? from_bf16(((const uint16_t *)w)[at]) : ((const float *)w)[at];
}

/* The columns behind the last whole vector, added one after another. Seldom any: one copy (COLD), not one for each
 * tile's shape. */
COLD float dot_rest(const void *w, const float *x, int64_t from, int64_t cols, int bf16, float sum) {
    for (int64_t k = from; k < cols; k++) sum += weight(w, k, bf16) * x[k];
    return sum;
}

/* Rows r, r + apart, r + 2 · apart … of the weights, n of them, with rows first … of x, m of them. From one r to
 * the next each is a long stream, which the hardware fetches ahead by itself; neighbours it finds too late. */
INLINE void dot_tile(const job_t *job, int r, int apart, int n, int first, int m, int bf16) {
    const int64_t cols = job->layer->cols;
    const void *w = job->layer->weights;
    const float *x = job->x + first * cols;
    v16 acc[4][8];
    UNROLL for (int j = 0; j < n; j++) UNROLL for (int i = 0; i < m; i++) acc[j][i] = zero16();
    int64_t k = 0;
    for (; k + 16 <= cols; k += 16) {
        v16 wide[4];
        UNROLL for (int j = 0; j < n; j++) wide[j] = load16_weights(w, (r + j * apart) * cols + k, bf16);
        UNROLL for (int i = 0; i < m; i++) {
            v16 v = load16(x + i * cols + k);
            UNROLL for (int j = 0; j < n; j++) acc[j][i] = fma16(wide[j], v, acc[j][i]);
        }
    }
    UNROLL for (int j = 0; j < n; j++) UNROLL for (int i = 0; i < m; i++) {
        float sum = sum16(acc[j][i]);
        const char *row = (const char *)w + (r + j * apart) * cols * (bf16 ? 2 : 4);
        if (k < cols) sum = dot_rest(row, x + i * cols, k, cols, bf16, sum);
        put(job, first + i, r + j * apart, sum);
    }
}

INLINE void dot_rows(const job_t *job, int from, int to, int n, int bf16) {
    const int apart = (to - from) / n;
    for (int r = from; r < from + apart; r++) {
        int i = 0;
#if LANES == 16 /* twice the registers: fewer passes over the weights */
        for (; n == 2 && i + 8 <= job->m; i += 8) dot_tile(job, r, apart, n, i, 8, bf16);
        for (; n == 2 && i + 4 <= job->m; i += 4) dot_tile(job, r, apart, n, i, 4, bf16);
#endif
        for (; i + 3 <= job->m; i += 3) dot_tile(job, r, apart, n, i, 3, bf16);
        if (i + 2 <= job->m) dot_tile(job, r, apart, n, i, 2, bf16), i += 2;
        if (i < job->m) dot_tile(job, r, apart, n, i, 1, bf16);
    }
}

static void dot_chunk(void *context, int chunk, int thread) {
    const job_t *job = context;
    (void)thread;
    const int from = chunk * CHUNK, to = least(from + CHUNK, job->layer->rows), n = job->m == 1 ? 4 : 2;
    const int even = from + (to - from) / n * n;
    if (job->layer->format == BF16) {
        if (n == 4) dot_rows(job, from, even, 4, 1);
        else dot_rows(job, from, even, 2, 1);
        dot_rows(job, even, to, 1, 1);
    } else {
        if (n == 4) dot_rows(job, from, even, 4, 0);
        else dot_rows(job, from, even, 2, 0);
        dot_rows(job, even, to, 1, 0);
    }
}

/* ---- more rows of x, float weights ---- */

static int panels_of(int m) { return (m + LANES - 1) / LANES; }

/* panels[p][k][lane] = x[p · LANES + lane][k], zeros beyond the last row. */
static void pack_panel(void *context, int panel, int thread) {
    const job_t *job = context;
    (void)thread;
    const int64_t cols = job->layer->cols;
    const int rows = least(LANES, job->m - panel * LANES);
    const float *from = job->x + (int64_t)panel * LANES * cols;
    float *to = job->scratch->panels + (int64_t)panel * cols * LANES;
    if (rows < LANES) memset(to, 0, (size_t)cols * LANES * sizeof *to);
    int64_t k = 0;
#if LANES == 8 && defined(__AVX2__)
    for (; rows == 8 && k + 8 <= cols; k += 8) {
        __m256 a[8], b[8];
        UNROLL for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(from + i * cols + k);
        UNROLL for (int i = 0; i < 8; i += 2) {
            b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
            b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
        }
        UNROLL for (int i = 0; i < 8; i += 4) {
            a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
            a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
            a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
            a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
        }
        UNROLL for (int i = 0; i < 4; i++) {
            _mm256_storeu_ps(to + (k + i) * 8, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
            _mm256_storeu_ps(to + (k + i + 4) * 8, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
        }
    }
#endif
    for (; k < cols; k++)
        for (int i = 0; i < rows; i++) to[k * LANES + i] = from[i * cols + k];
}

/* sums[n][p · LANES …] += widened[n][depth] · panels */
INLINE void tile(const float *RESTRICT widened, const float *RESTRICT panel, int64_t panel_size, int depth,
                 float *RESTRICT sums, int64_t sums_stride, int n, int p, int first) {
    vf acc[12][2];
    UNROLL for (int j = 0; j < n; j++) UNROLL for (int q = 0; q < p; q++)
        acc[j][q] = first ? splat(0) : load(sums + j * sums_stride + q * LANES);
    for (int k = 0; k < depth; k++) {
        vf x[2];
        UNROLL for (int q = 0; q < p; q++) x[q] = load(panel + q * panel_size + (int64_t)k * LANES);
        UNROLL for (int j = 0; j < n; j++) {
            vf w = splat(widened[j * DEPTH_STRIDE + k]);
            KEEP(w);
            UNROLL for (int q = 0; q < p; q++) acc[j][q] = fma_lanes(w, x[q], acc[j][q]);
        }
    }
    UNROLL for (int j = 0; j < n; j++) UNROLL for (int q = 0; q < p; q++)
        store(sums + j * sums_stride + q * LANES, acc[j][q]);
}

static void widen(const linear_t *layer, int row, int rows, int64_t k, int depth, float *to) {
    for (int j = 0; j < rows; j++) {
        const int64_t at = (int64_t)(row + j) * layer->cols + k;
        float *into = to + j * DEPTH_STRIDE;
        if (layer->format == FP32) {
            memcpy(into, (const float *)layer->weights + at, (size_t)depth * sizeof *into);
            continue;
        }
        const uint16_t *w = (const uint16_t *)layer->weights + at;
        int i = 0;
        for (; i + 32 <= depth; i += 32) {
            __builtin_prefetch(w + i + AHEAD);
            UNROLL for (int l = 0; l < 32; l += LANES) store(into + i + l, load_bf16(w + i + l));
        }
        for (; i < depth; i++) into[i] = from_bf16(w[i]);
    }
}

#if LANES == 16
#define TILE_WIDE 12
#else
#define TILE_WIDE 6
#endif
#define TILE_TALL 12

static void float_rows(const job_t *job, int from, int rows, float *widened) {
    const int64_t cols = job->layer->cols, panel_size = cols * LANES;
    const int panels = panels_of(job->m);
    const int64_t stride = (int64_t)panels * LANES;
    float *sums = widened + CHUNK * DEPTH_STRIDE;
    for (int64_t k = 0; k < cols; k += DEPTH) {
        const int depth = (int)(cols - k < DEPTH ? cols - k : DEPTH), first = k == 0;
        widen(job->layer, from, rows, k, depth, widened);
        int p = 0;
        for (; p + 2 <= panels; p += 2) {
            const float *panel = job->scratch->panels + p * panel_size + k * LANES;
            for (int j = 0; j < rows; j += TILE_WIDE)
                tile(widened + j * DEPTH_STRIDE, panel, panel_size, depth, sums + j * stride + p * LANES, stride,
                     TILE_WIDE, 2, first);
        }
        if (p < panels) {
            const float *panel = job->scratch->panels + p * panel_size + k * LANES;
            for (int j = 0; j < rows; j += TILE_TALL)
                tile(widened + j * DEPTH_STRIDE, panel, panel_size, depth, sums + j * stride + p * LANES, stride,
                     TILE_TALL, 1, first);
        }
    }
    for (int i = 0; i < job->m; i++)
        for (int j = 0; j < rows; j++) put(job, i, from + j, sums[j * stride + i]);
}

static void float_chunk(void *context, int chunk, int thread) {
    const job_t *job = context;
    const int from = chunk * CHUNK, to = least(from + CHUNK, job->layer->rows);
    float *widened = job->scratch->tiles + thread * job->scratch->tile_floats;
    /* With many panels a block of weights must be large, so that each panel is fetched seldom; with few, it is
     * the weights that are fetched, and they come fastest along their rows. */
    const int block = panels_of(job->m) > 2 ? CHUNK : TILE_TALL;
    for (int row = from; row < to; row += block) {
        const int rows = least(block, to - row);
        if (rows < block) memset(widened, 0, CHUNK * DEPTH_STRIDE * sizeof *widened);
        float_rows(job, row, rows, widened);
    }
}

/* ---- integer weights ---- */

#define STEP (2 * LANES) /* columns of one madd */

COLD int32_t int8_rest(const int8_t *w, const int16_t *q, int from, int depth) {
    int32_t sum = 0;
    for (int k = from; k < depth; k++) sum += (int32_t)w[k] * q[k];
    return sum;
}

/* Rows of weights `apart` rows apart, as in dot_tile, n of them, with m rows of x. Where a row is taken in pieces
 * its stream is broken, and is fetched ahead by hand. */
INLINE void int8_tile(const int8_t *w, int64_t apart, const int16_t *q, int64_t cols, int depth, int32_t *sums,
                      int sums_stride, int n, int m, int broken) {
    const int64_t stride = quantised_stride(cols);
    vi acc[4][8];
    UNROLL for (int j = 0; j < n; j++) UNROLL for (int i = 0; i < m; i++) acc[j][i] = (vi){0};
    int k = 0;
    for (; k + STEP <= depth; k += STEP) {
        vs wide[4];
        UNROLL for (int j = 0; j < n; j++) {
            if (broken) __builtin_prefetch(w + (j * apart + 1) * cols + k);
            wide[j] = load_i8_as_i16(w + j * apart * cols + k);
        }
        UNROLL for (int i = 0; i < m; i++) {
            vs x = load_i16(q + i * stride + k);
            KEEP(x);
            UNROLL for (int j = 0; j < n; j++) acc[j][i] = madd_any(acc[j][i], wide[j], x);
        }
    }
    UNROLL for (int j = 0; j < n; j++) UNROLL for (int i = 0; i < m; i++) {
        int32_t sum = sum_i32(acc[j][i]);
        if (k < depth) sum += int8_rest(w + j * apart * cols, q + i * stride, k, depth);
        sums[j * apart * sums_stride + i] += sum;
    }
}

INLINE void int8_rows(const int8_t *w, int rows, const int16_t *q, int64_t cols, int depth, int32_t *sums,
                      int sums_stride, int n, int m) {
    const int apart = rows / n, broken = depth < cols;
    int j = 0;
    for (; j < apart; j++, w += cols, sums += sums_stride) {
        if (broken) int8_tile(w, apart, q, cols, depth, sums, sums_stride, n, m, 1);
        else int8_tile(w, apart, q, cols, depth, sums, sums_stride, n, m, 0);
    }
    for (j = n * apart; j < rows; j++)
        int8_tile(w + (j - apart) * cols, 0, q, cols, depth, sums + (j - apart) * sums_stride, sums_stride, 1, m, 0);
}

static void int8_chunk(void *context, int chunk, int thread) {
    const job_t *job = context;
    const int64_t cols = job->layer->cols;
    const int from = chunk * INT_CHUNK, rows = least(INT_CHUNK, job->layer->rows - from), m = job->m;
    const int8_t *w = (const int8_t *)job->layer->weights + from * cols;
    const float *scales = job->layer->scales;
    int32_t *sums = (int32_t *)(job->scratch->tiles + thread * job->scratch->tile_floats);
    memset(sums, 0, (size_t)rows * m * sizeof *sums);
    const int64_t deepest = m <= 2 ? cols : INT_DEPTH;
    for (int64_t k = 0; k < cols; k += deepest) {
        const int depth = (int)(cols - k < deepest ? cols - k : deepest);
        const int16_t *q = job->scratch->quantised + k;
        const int64_t stride = quantised_stride(cols);
        int i = 0;
#if LANES == 16
        for (; i + 8 <= m; i += 8) int8_rows(w + k, rows, q + i * stride, cols, depth, sums + i, m, 2, 8);
        for (; i + 4 <= m; i += 4) int8_rows(w + k, rows, q + i * stride, cols, depth, sums + i, m, 4, 4);
#endif
        for (; i + 4 <= m; i += 4) int8_rows(w + k, rows, q + i * stride, cols, depth, sums + i, m, 2, 4);
        if (i + 3 == m) int8_rows(w + k, rows, q + i * stride, cols, depth, sums + i, m, 2, 3);
        if (i + 2 == m) int8_rows(w + k, rows, q + i * stride, cols, depth, sums + i, m, 2, 2);
        if (i + 1 == m) int8_rows(w + k, rows, q + i * stride, cols, depth, sums + i, m, 4, 1);
    }
    for (int i = 0; i < m; i++)
        for (int j = 0; j < rows; j++)
            put(job, i, from + j,
                (float)sums[j * m + i] * (scales[from + j] * job->scratch->row_scales[i]));
}

static void put_row(void *context, int i, int thread) {
    const job_t *job = context;
    (void)thread;
    for (int r = 0; r < job->layer->rows; r++)
        put(job, i, r, job->scratch->products[i * (int64_t)job->layer->rows + r]);
}

int64_t scratch_tile_floats(int m) {
    const int64_t padded = (int64_t)panels_of(m) * LANES;
    int64_t most = CHUNK * DEPTH_STRIDE + CHUNK * padded;
    if (INT_CHUNK * (int64_t)m > most) most = INT_CHUNK * (int64_t)m;
    if (amx_floats(m) > most) most = amx_floats(m);
    return most + 64; /* threads' tiles on lines of their own */
}

static void integer_linear(pool_t *pool, job_t *job) {
    const linear_t *layer = job->layer;
    const int by_tiles = uses_tiles(job->scratch, layer->format, job->m);
    if (by_tiles) job->chunk_rows = amx_rows(layer->format, layer->rows, pool_threads(pool));
    pool_run(pool, quantise_row, job, job->m);
    const int rows = by_tiles ? job->chunk_rows : INT_CHUNK, chunks = (layer->rows + rows - 1) / rows;
    pool_run(pool, by_tiles ? amx_chunk
                   : layer->format == INT8 ? int8_chunk
                   : layer->format == W8A8 ? bytes_chunk
                   : grouped_chunk,
             job, chunks);
}

void linear(pool_t *pool, const linear_t *layer, const scratch_t *scratch, const float *x, int64_t x_stride, int m,
            float *out, int64_t stride, int how, float factor) {
    job_t job = {layer, scratch, x, x_stride, out, stride, m, how, factor, 0, (m + TILE - 1) / TILE * TILE};
    if (takes_strides(layer->format)) {
        integer_linear(pool, &job);
        return;
    }
    if (scratch->product && layer->format == BF16 && m >= PRODUCT_ROWS) {
        pool_end(pool); /* the other library has threads of its own */
        const int done = scratch->product(layer, x, m, scratch->products);
        pool_begin(pool);
        if (done) {
            pool_run(pool, put_row, &job, m);
            return;
        }
    }
    const int chunks = (layer->rows + CHUNK - 1) / CHUNK;
    if (m <= DOT_ROWS) {
        pool_run(pool, dot_chunk, &job, chunks);
        return;
    }
    pool_run(pool, pack_panel, &job, panels_of(m));
    pool_run(pool, float_chunk, &job, chunks);
}
