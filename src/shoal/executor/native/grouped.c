/* Weights in groups of a row, as they are published: a weight is scale · (integer - zero) + minimum, with a scale
 * and perhaps a minimum for each group. Integers have 4 bits (as pack_int4 lays them) or 8.
 *
 * A unit is what shares a scale here: 16 weights where groups are that small, else 32. x is quantised per row to 16
 * bits. Products with a unit's integers are summed exactly, in eight lanes, which are scaled and added as floats,
 * unit after unit. Always eight lanes, whatever the machine's width: the bits of a row depend neither on the rows
 * beside it, nor on the number of threads, nor on the machine. */
#include "job.h"
#include "simd.h"

#define WIDE 8 /* lanes, and units whose scales are widened together */

typedef float v8f __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef int16_t v16s __attribute__((vector_size(32)));
typedef float v8f_any __attribute__((vector_size(32), aligned(4), may_alias));
typedef int16_t v16s_any __attribute__((vector_size(32), aligned(2), may_alias));

INLINE v16s load16_i16(const int16_t *p) { return *(const v16s_any *)p; }
INLINE v8f splat8(float x) { return (v8f){x, x, x, x, x, x, x, x}; }
INLINE v8f fma8(v8f a, v8f b, v8f c) {
#if defined(__FMA__)
    return (v8f)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    for (int i = 0; i < 8; i++) a[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return a;
#endif
}
INLINE v8i madd8(v8i acc, v16s a, v16s b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return (v8i)_mm256_dpwssd_epi32((__m256i)acc, (__m256i)a, (__m256i)b);
#elif defined(__AVX2__)
    return acc + (v8i)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    for (int i = 0; i < 8; i++) acc[i] += (int32_t)a[2 * i] * b[2 * i] + (int32_t)a[2 * i + 1] * b[2 * i + 1];
    return acc;
#endif
}
INLINE float sum8(v8f s) {
    s += __builtin_shufflevector(s, s, 4, 5, 6, 7, 0, 1, 2, 3);
    s += __builtin_shufflevector(s, s, 2, 3, 0, 1, 6, 7, 4, 5);
    s += __builtin_shufflevector(s, s, 1, 0, 3, 2, 5, 4, 7, 6);
    return s[0];
}

/* The 32 weights from byte `p` on, as integers: the first 16, and those behind them. */
INLINE void load_weights(const uint8_t *p, int bits, v16s zero, v16s to[2]) {
#if defined(__AVX2__)
    if (bits == 8) {
        to[0] = (v16s)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
        to[1] = (v16s)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p + 16)));
        return;
    }
    const __m256i bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
    to[0] = (v16s)_mm256_and_si256(bytes, _mm256_set1_epi16(15)) - zero;
    to[1] = (v16s)_mm256_srli_epi16(bytes, 4) - zero;
#else
    for (int k = 0; k < 16; k++) {
        to[0][k] = bits == 8 ? (int8_t)p[k] : (int16_t)((p[k] & 15) - zero[k]);
        to[1][k] = bits == 8 ? (int8_t)p[k + 16] : (int16_t)((p[k] >> 4) - zero[k]);
    }
#endif
}

INLINE float from_f16(uint16_t h) { /* finite: a file with another scale was refused */
    const uint32_t up = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
    float x;
    memcpy(&x, &up, 4);
    x *= 0x1p112f;
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits |= sign;
    memcpy(&x, &bits, 4);
    return x;
}

/* What load_units gives where there is no whole vector of them. Not inlined: it would take most of the compiler's time. */
static __attribute__((noinline)) void gather_units(float *to, const linear_t *layer, const void *from, int64_t row,
                                                   int64_t unit, int n, int per) {
    for (int i = 0; i < WIDE; i++) {
        const int64_t at = row + (unit + i) / per;
        to[i] = i >= n ? 0 : layer->halves ? from_f16(((const uint16_t *)from)[at]) : ((const float *)from)[at];
    }
}

/* Scales or minima of the units [unit, unit + n) of a row whose groups begin at `row`; n is at most WIDE. Behind them
 * may stand those of the next row, which meet sums that are 0. */
INLINE v8f load_units(const linear_t *layer, const void *from, int64_t row, int64_t unit, int n, int per) {
    const int64_t groups = (int64_t)layer->rows * (layer->cols / layer->group);
    if (per == 1 && row + unit + WIDE <= groups) {
        if (!layer->halves) return *(const v8f_any *)((const float *)from + row + unit);
#if defined(__F16C__)
        return (v8f)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)from + row + unit)));
#endif
    }
    float each[WIDE];
    gather_units(each, layer, from, row, unit, n, per);
    return *(const v8f_any *)each;
}

INLINE int unit_of(const linear_t *layer) { return layer->group == 16 ? 16 : 32; }

void sum_units(const job_t *job, int i) {
    const int64_t cols = job->layer->cols, unit = unit_of(job->layer);
    const int16_t *q = job->scratch->quantised + i * quantised_stride(cols);
    float *sums = job->scratch->unit_sums + i * unit_sums_stride(cols);
    const v16s ones = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    for (int64_t k = 0; k < cols; k += unit) {
        v8i sum = {0};
        for (int64_t t = 0; t < unit; t += 16) sum = madd8(sum, load16_i16(q + k + t), ones);
        int32_t whole = 0;
        UNROLL for (int l = 0; l < 8; l++) whole += sum[l];
        *sums++ = (float)whole;
    }
    memset(sums, 0, WIDE * sizeof *sums); /* what is read with the last of them */
}

/* Rows r, r + apart, … of the weights, n of them, with rows i … of x, m of them. */
INLINE void grouped_tile(const job_t *job, int r, int apart, int n, int i, int m, int bits, int unit) {
    const linear_t *layer = job->layer;
    const int64_t cols = layer->cols, stride = quantised_stride(cols), groups = cols / layer->group;
    const int64_t units = cols / unit, bytes = cols * bits / 8;
    const int per = layer->group / unit;
    const int16_t zero = (int16_t)layer->zero, *q = job->scratch->quantised + i * stride;
    const v16s zeros = {zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero};
    v8f acc[4][4];
    UNROLL for (int j = 0; j < n; j++) UNROLL for (int t = 0; t < m; t++) acc[j][t] = (v8f){0};
    for (int64_t at = 0; at < units; at += WIDE) {
        const int count = units - at < WIDE ? (int)(units - at) : WIDE;
        float scales[4][WIDE];
        UNROLL for (int j = 0; j < n; j++) {
            const int64_t row = (int64_t)(r + j * apart) * groups;
            *(v8f_any *)scales[j] = load_units(layer, layer->scales, row, at, count, per);
            if (!layer->minima) continue;
            const v8f minima = load_units(layer, layer->minima, row, at, count, per);
            UNROLL for (int t = 0; t < m; t++) {
                const float *sums = job->scratch->unit_sums + (i + t) * unit_sums_stride(cols) + at;
                acc[j][t] = fma8(minima, *(const v8f_any *)sums, acc[j][t]);
            }
        }
        for (int k = 0; k < count; k += 32 / unit) {
            const int64_t column = (at + k) * unit;
            UNROLL for (int j = 0; j < n; j++) {
                v16s values[2];
                const uint8_t *w = (const uint8_t *)layer->weights + (int64_t)(r + j * apart) * bytes;
                load_weights(w + column * bits / 8, bits, zeros, values);
                UNROLL for (int t = 0; t < m; t++) {
                    const int16_t *x = q + t * stride + column;
                    v8i sum = madd8((v8i){0}, values[0], load16_i16(x));
                    if (unit == 16) {
                        acc[j][t] = fma8(__builtin_convertvector(sum, v8f), splat8(scales[j][k]), acc[j][t]);
                        sum = (v8i){0};
                    }
                    sum = madd8(sum, values[1], load16_i16(x + 16));
                    const float scale = scales[j][unit == 16 ? k + 1 : k];
                    acc[j][t] = fma8(__builtin_convertvector(sum, v8f), splat8(scale), acc[j][t]);
                }
            }
        }
    }
    UNROLL for (int j = 0; j < n; j++) UNROLL for (int t = 0; t < m; t++)
        put(job, i + t, r + j * apart, sum8(acc[j][t]) * job->scratch->row_scales[i + t]);
}

/* Four rows of x take a row of weights together; one alone takes four rows of weights, as in dot_tile. Without
 * vectors of this width neither is worth the time of compiling it. */
INLINE void grouped_rows(const job_t *job, int from, int to, int bits, int unit) {
    int i = 0, apart = 0;
#if defined(__AVX2__)
    for (; i + 4 <= job->m; i += 4)
        for (int r = from; r < to; r++) grouped_tile(job, r, 0, 1, i, 4, bits, unit);
    apart = (to - from) / 4;
#endif
    for (; i < job->m; i++) {
#if defined(__AVX2__)
        for (int r = from; r < from + apart; r++) grouped_tile(job, r, apart, 4, i, 1, bits, unit);
#endif
        for (int r = from + 4 * apart; r < to; r++) grouped_tile(job, r, 0, 1, i, 1, bits, unit);
    }
}

void grouped_chunk(void *context, int chunk, int thread) {
    const job_t *job = context;
    (void)thread;
    const int from = chunk * INT_CHUNK, to = least(from + INT_CHUNK, job->layer->rows);
    const int unit = unit_of(job->layer);
    if (job->layer->format == GROUPED4) {
        if (unit == 16) grouped_rows(job, from, to, 4, 16);
        else grouped_rows(job, from, to, 4, 32);
    } else {
        if (unit == 16) grouped_rows(job, from, to, 8, 16);
        else grouped_rows(job, from, to, 8, 32);
    }
}
