/* Weights of 8 bits with a scale for each row, and x of 8 bits with a scale for each row.
 *
 * As in grouped.c sixteen rows of weights lie interleaved in a tile and each is a lane of its own, here with four
 * neighbouring columns of each row side by side (kernels/tiles.py): a quad. Sums are exact in 32 bits, so that the
 * bits depend neither on the rows beside, nor on the number of threads, nor on the instructions. Where a CPU has
 * products of bytes, x stays in bytes, else it is widened to 16 bits, as the weights are. AMX: see amx.c. */
#include "cpu.h"
#include "lanes.h"

#define AHEAD 1024 /* bytes of weights fetched ahead of their use */

#if defined(__AVX512VNNI__)
#define DOT_TARGET
#define ALWAYS_DOT 1
#define DOT_M 8
#elif defined(__AVX2__) && (__GNUC__ >= 11 || __clang_major__ >= 12)
#define DOT_TARGET __attribute__((target("avxvnni")))
#define DOT_M 4
#elif defined(__ARM_FEATURE_DOTPROD)
#define DOT_TARGET
#define DOT_M 4
#elif defined(__aarch64__) && defined(__GNUC__) && !defined(__clang__)
#define DOT_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#define DOT_M 4
#endif

int holds_bytes(const scratch_t *scratch) {
#if defined(ALWAYS_DOT)
    (void)scratch;
    return 1;
#elif defined(DOT_TARGET)
    return scratch->extras & DOT_BYTES;
#else
    (void)scratch;
    return 0;
#endif
}

static const int8_t *tile_at(const linear_t *layer, int tile) {
    return (const int8_t *)layer->weights + tile * (TILE * padded_cols(layer->cols));
}

/* Of row i of x with a tile: its sums as they leave the layer. */
INLINE void finish(const job_t *job, int i, int tile, i16x sums) {
    const float *scales = (const float *)job->layer->scales + tile * TILE;
    const v16 scale = times16(load16(scales), splat16(job->scratch->row_scales[i]));
    put_tile(job, i, tile * TILE, times16(to_floats(sums), scale));
}

/* ---- products of bytes ---- */

#if defined(DOT_TARGET)
#if defined(__AVX512VNNI__)
typedef struct { __m512i a; } quads;
/* The product takes one side without a sign: the weights, each 128 larger, which sum_start takes back. */
INLINE quads load_quads(const int8_t *w) {
    return (quads){_mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8(-128))};
}
INLINE i16x dot_quads(i16x sum, quads w, int32_t x) {
    return (i16x){(vi)_mm512_dpbusd_epi32((__m512i)sum.a, w.a, _mm512_set1_epi32(x))};
}
#elif defined(__AVX2__)
typedef struct { __m256i a, b; } quads;
INLINE DOT_TARGET quads load_quads(const int8_t *w) {
    const __m256i *from = (const __m256i *)w;
    const __m256i more = _mm256_set1_epi8(-128);
    return (quads){_mm256_xor_si256(_mm256_loadu_si256(from), more),
                   _mm256_xor_si256(_mm256_loadu_si256(from + 1), more)};
}
INLINE DOT_TARGET i16x dot_quads(i16x sum, quads w, int32_t x) {
    const __m256i all = _mm256_set1_epi32(x);
    return (i16x){(vi)_mm256_dpbusd_avx_epi32((__m256i)sum.a, w.a, all),
                  (vi)_mm256_dpbusd_avx_epi32((__m256i)sum.b, w.b, all)};
}
#else
typedef union { int8x16_t parts[4]; } quads;
typedef union { i16x sums; int32x4_t parts[4]; } sum_parts;
INLINE DOT_TARGET quads load_quads(const int8_t *w) {
    quads to;
    UNROLL for (int p = 0; p < 4; p++) to.parts[p] = vld1q_s8(w + 16 * p);
    return to;
}
INLINE DOT_TARGET i16x dot_quads(i16x sum, quads w, int32_t x) {
    sum_parts to = {sum};
    const int8x16_t all = vreinterpretq_s8_s32(vdupq_n_s32(x));
    UNROLL for (int p = 0; p < 4; p++) to.parts[p] = vdotq_s32(to.parts[p], w.parts[p], all);
    return to.sums;
}
#endif

INLINE int32_t sum_start(const job_t *job, int i) {
#if defined(__x86_64__)
    return -128 * job->scratch->unit_sums[i];
#else
    (void)job, (void)i;
    return 0;
#endif
}
INLINE int32_t quad_at(const int8_t *x) {
    int32_t four;
    memcpy(&four, x, sizeof four);
    return four;
}

/* n tiles with rows i … of x, m of them. */
INLINE DOT_TARGET void dot_tiles(const job_t *job, int tile, int n, int i, int m) {
    const int64_t cols = padded_cols(job->layer->cols), stride = bytes_stride(cols);
    const int8_t *x = (const int8_t *)job->scratch->quantised + i * stride, *w = tile_at(job->layer, tile);
    i16x sums[4][8];
    UNROLL for (int j = 0; j < n; j++) UNROLL for (int t = 0; t < m; t++) sums[j][t] = all16(sum_start(job, i + t));
    for (int64_t k = 0; k < cols; k += QUAD, w += QUAD * TILE) {
        quads four[4];
        UNROLL for (int j = 0; j < n; j++) {
            four[j] = load_quads(w + j * TILE * cols);
            __builtin_prefetch(w + j * TILE * cols + AHEAD);
        }
        UNROLL for (int t = 0; t < m; t++) {
            const int32_t all = quad_at(x + t * stride + k);
            UNROLL for (int j = 0; j < n; j++) sums[j][t] = dot_quads(sums[j][t], four[j], all);
        }
    }
    UNROLL for (int j = 0; j < n; j++) UNROLL for (int t = 0; t < m; t++) finish(job, i + t, tile + j, sums[j][t]);
}

DOT_TARGET static void dot_bytes(const job_t *job, int from, int to) {
    int i = 0, tile;
#if DOT_M == 8
    for (; i + 8 <= job->m; i += 8) {
        for (tile = from; tile + 2 <= to; tile += 2) dot_tiles(job, tile, 2, i, 8);
        for (; tile < to; tile++) dot_tiles(job, tile, 1, i, 8);
    }
#endif
    for (; i + 4 <= job->m; i += 4) {
        tile = from;
#if DOT_M == 8
        for (; tile + 4 <= to; tile += 4) dot_tiles(job, tile, 4, i, 4);
#endif
        for (; tile < to; tile++) dot_tiles(job, tile, 1, i, 4);
    }
    for (; i < job->m; i++) {
        for (tile = from; tile + 4 <= to; tile += 4) dot_tiles(job, tile, 4, i, 1);
        for (; tile < to; tile++) dot_tiles(job, tile, 1, i, 1);
    }
}
#endif

/* ---- x in 16 bits ---- */

#define WIDE (32 / LANES) /* vectors of the sums of a tile: of each row two, of pairs of columns */

/* Neighbours, of which each is half of a row's sum, added. */
INLINE i16x join_halves(const vi *halves) {
    i16x to;
#if LANES == 16
    to.a = __builtin_shufflevector(halves[0], halves[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           __builtin_shufflevector(halves[0], halves[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#else
    to.a = __builtin_shufflevector(halves[0], halves[1], 0, 2, 4, 6, 8, 10, 12, 14) +
           __builtin_shufflevector(halves[0], halves[1], 1, 3, 5, 7, 9, 11, 13, 15);
    to.b = __builtin_shufflevector(halves[2], halves[3], 0, 2, 4, 6, 8, 10, 12, 14) +
           __builtin_shufflevector(halves[2], halves[3], 1, 3, 5, 7, 9, 11, 13, 15);
#endif
    return to;
}
INLINE vs all_quads(const int16_t *x) {
    int64_t four;
    memcpy(&four, x, sizeof four);
    typedef int64_t vl __attribute__((vector_size(4 * LANES)));
    return (vs)((vl){0} + four);
}

INLINE void wide_tile(const job_t *job, int tile, int i, int m) {
    const int64_t cols = padded_cols(job->layer->cols), stride = quantised_stride(job->layer->cols);
    const int16_t *x = job->scratch->quantised + i * stride;
    const int8_t *w = tile_at(job->layer, tile);
    vi sums[2][WIDE];
    UNROLL for (int t = 0; t < m; t++) UNROLL for (int p = 0; p < WIDE; p++) sums[t][p] = (vi){0};
    for (int64_t k = 0; k < cols; k += QUAD, w += QUAD * TILE) {
        vs all[2];
        UNROLL for (int t = 0; t < m; t++) all[t] = all_quads(x + t * stride + k);
        __builtin_prefetch(w + AHEAD);
        UNROLL for (int p = 0; p < WIDE; p++) {
            const vs wide = load_i8_as_i16(w + 2 * LANES * p);
            UNROLL for (int t = 0; t < m; t++) sums[t][p] = madd(sums[t][p], wide, all[t]);
        }
    }
    UNROLL for (int t = 0; t < m; t++) finish(job, i + t, tile, join_halves(sums[t]));
}

static void dot_wide(const job_t *job, int from, int to) {
    int i = 0;
    for (; i + 2 <= job->m; i += 2)
        for (int tile = from; tile < to; tile++) wide_tile(job, tile, i, 2);
    for (; i < job->m; i++)
        for (int tile = from; tile < to; tile++) wide_tile(job, tile, i, 1);
}

void bytes_chunk(void *context, int chunk, int thread) {
    const job_t *job = context;
    (void)thread;
    const int from = chunk * (INT_CHUNK / TILE), to = least(from + INT_CHUNK / TILE, tiles_of(job->layer->rows));
#if defined(DOT_TARGET)
    if (holds_bytes(job->scratch)) {
        dot_bytes(job, from, to);
        return;
    }
#endif
    dot_wide(job, from, to);
}
