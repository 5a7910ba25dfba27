/* Products of matrices of bytes by AMX, for many rows of x: sixteen rows of x and sixteen of weights at once.
 *
 * Of w8a8 the tiles of weights lie as AMX reads them. Those of int8 are turned into such tiles, some columns at a
 * time, and x, which has 16 bits there, is two matrices of bytes: its lower ones, without a sign, and its upper
 * ones. All sums are exact, so the bits are those of the other kernels. */
#include "cpu.h"
#include "lanes.h"

#if defined(__AVX512VNNI__) && defined(__x86_64__) && (__GNUC__ >= 11 || __clang_major__ >= 12)

#define SIDE 16     /* rows of a tile register */
#define STEP 64     /* columns of x that one product takes: bytes of a row of a register */
#define PART 1024   /* bytes of a register */
#define STEPS 16    /* products before the sums go to memory: what they read fits into the caches */
#define ROWS 128    /* of weights, in one chunk of work at most */
#define INT8_ROWS 64

#define LOAD(register, from, stride)                                                                                \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #register : : "r"(from), "r"((int64_t)(stride)) : "memory")
#define STORE(register, to, stride)                                                                                 \
    __asm__ volatile("tilestored %%tmm" #register ", (%0,%1,1)" : : "r"(to), "r"((int64_t)(stride)) : "memory")
#define CLEAR(register) __asm__ volatile("tilezero %%tmm" #register : : : "memory")
#define MULTIPLY(how, sums, x, weights)                                                                             \
    __asm__ volatile("tdpb" #how " %%tmm" #weights ", %%tmm" #x ", %%tmm" #sums : : : "memory")

static void begin_tiles(void) { /* eight registers of 16 rows, 64 bytes each */
    struct { uint8_t palette, row, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
    for (int t = 0; t < 8; t++) shape.bytes[t] = STEP, shape.rows[t] = SIDE;
    __asm__ volatile("ldtilecfg %0" : : "m"(shape));
}
static void end_tiles(void) { __asm__ volatile("tilerelease" : : : "memory"); }

/* Two tiles of x with two of weights. Of int8 the first of x are the lower bytes, the second the upper ones. */
INLINE void multiply(const int8_t *const x[2], int64_t stride, const int8_t *const w[2], int steps,
                     int32_t *const sums[4], int first, int int8) {
    if (first) {
        CLEAR(0);
        CLEAR(1);
        CLEAR(2);
        CLEAR(3);
    } else {
        LOAD(0, sums[0], STEP);
        LOAD(1, sums[1], STEP);
        LOAD(2, sums[2], STEP);
        LOAD(3, sums[3], STEP);
    }
    for (int s = 0; s < steps; s++) {
        LOAD(6, w[0] + s * PART, STEP);
        LOAD(4, x[0] + s * STEP, stride);
        if (int8) MULTIPLY(usd, 0, 4, 6);
        else MULTIPLY(ssd, 0, 4, 6);
        LOAD(7, w[1] + s * PART, STEP);
        if (int8) MULTIPLY(usd, 1, 4, 7);
        else MULTIPLY(ssd, 1, 4, 7);
        LOAD(5, x[1] + s * STEP, stride);
        MULTIPLY(ssd, 2, 5, 6);
        MULTIPLY(ssd, 3, 5, 7);
    }
    STORE(0, sums[0], STEP);
    STORE(1, sums[1], STEP);
    STORE(2, sums[2], STEP);
    STORE(3, sums[3], STEP);
}

/* ---- int8: tiles of weights that lie in rows ---- */

/* Sixteen vectors of sixteen, turned. */
INLINE void turn(__m512i v[16]) {
    __m512i w[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        w[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        w[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_unpacklo_epi64(w[i], w[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(w[i], w[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(w[i + 1], w[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(w[i + 1], w[i + 3]);
    }
    UNROLL for (int j = 0; j < 4; j++) {
        w[j] = _mm512_shuffle_i32x4(v[j], v[4 + j], 0x88);
        w[4 + j] = _mm512_shuffle_i32x4(v[j], v[4 + j], 0xdd);
        w[8 + j] = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0x88);
        w[12 + j] = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0xdd);
    }
    UNROLL for (int j = 0; j < 4; j++) {
        v[j] = _mm512_shuffle_i32x4(w[j], w[8 + j], 0x88);
        v[4 + j] = _mm512_shuffle_i32x4(w[4 + j], w[12 + j], 0x88);
        v[8 + j] = _mm512_shuffle_i32x4(w[j], w[8 + j], 0xdd);
        v[12 + j] = _mm512_shuffle_i32x4(w[4 + j], w[12 + j], 0xdd);
    }
}

/* Columns k … of rows r … as tiles, zeros behind the last of either. */
static void turn_weights(const linear_t *layer, int r, int rows, int64_t k, int steps, int8_t *to) {
    const int64_t cols = layer->cols;
    for (int tile = 0; tile * TILE < rows; tile++, to += steps * PART) {
        const int8_t *from = (const int8_t *)layer->weights + (r + tile * TILE) * cols + k;
        for (int s = 0; s < steps; s++) {
            const int64_t left = cols - k - s * STEP;
            const __mmask64 there = left >= STEP ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1;
            __m512i v[16];
            UNROLL for (int i = 0; i < 16; i++) {
                const __mmask64 mask = r + tile * TILE + i < layer->rows ? there : 0;
                v[i] = _mm512_maskz_loadu_epi8(mask, from + i * cols + s * STEP);
                __builtin_prefetch(from + i * cols + s * STEP + 4 * STEP);
            }
            turn(v);
            UNROLL for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + s * PART + i * STEP, v[i]);
        }
    }
}

/* ---- one chunk ---- */

typedef struct {
    const job_t *job;
    int from, rows, tiles; /* of weights */
    int32_t *sums;         /* [tiles][planes][padded m][TILE] */
    int8_t *turned;
    int64_t stride;        /* of x, in bytes */
} block_t;

static int padded_m(int m) { return (m + 2 * SIDE - 1) & ~(2 * SIDE - 1); }

INLINE int32_t *sums_at(const block_t *block, int tile, int plane, int planes, int i) {
    return block->sums + (((int64_t)tile * planes + plane) * padded_m(block->job->m) + i) * TILE;
}

/* Columns k … of all rows of x with tiles t and t + 1. Of an odd last one of either, the one before stands twice. */
INLINE void multiply_pair(const block_t *block, int t, int64_t k, int steps, int i, int int8) {
    const job_t *job = block->job;
    const int64_t cols = padded_cols(job->layer->cols);
    const int8_t *x = (const int8_t *)job->scratch->quantised + i * block->stride + k;
    const int8_t *upper = int8 ? x + job->m_padded * block->stride : i + SIDE < job->m ? x + SIDE * block->stride : x;
    const int other = t + 1 < block->tiles ? t + 1 : t;
    const int8_t *all = int8 ? block->turned : (const int8_t *)job->layer->weights + block->from * cols + k * TILE;
    const int64_t apart = int8 ? steps * PART : TILE * cols;
    const int8_t *const xs[2] = {x, upper}, *const ws[2] = {all + t * apart, all + other * apart};
    int32_t *const sums[4] = {
        sums_at(block, t, 0, 1 + int8, i), sums_at(block, t + 1, 0, 1 + int8, i),
        int8 ? sums_at(block, t, 1, 2, i) : sums_at(block, t, 0, 1, i + SIDE),
        int8 ? sums_at(block, t + 1, 1, 2, i) : sums_at(block, t + 1, 0, 1, i + SIDE)};
    multiply(xs, block->stride, ws, steps, sums, k == 0, int8);
}

INLINE void put_sums(const block_t *block, int int8) {
    const job_t *job = block->job;
    for (int i = 0; i < job->m; i++)
        for (int t = 0; t < block->tiles; t++) {
            const int r = block->from + t * TILE;
            i16x sums = {*(const vi_any *)sums_at(block, t, 0, 1 + int8, i)};
            if (int8) sums.a += *(const vi_any *)sums_at(block, t, 1, 2, i) << 8;
            float scales[TILE] = {0};
            const float *from = (const float *)job->layer->scales + r;
            if (int8 && r + TILE > job->layer->rows) {
                for (int l = 0; r + l < job->layer->rows; l++) scales[l] = from[l];
                from = scales;
            }
            const v16 scale = times16(load16(from), splat16(job->scratch->row_scales[i]));
            put_tile(job, i, r, times16(to_floats(sums), scale));
        }
}

INLINE void run_block(block_t *block, int int8) {
    const job_t *job = block->job;
    const int64_t cols = padded_cols(job->layer->cols);
    for (int64_t k = 0; k < cols; k += STEPS * STEP) {
        const int steps = cols - k < STEPS * STEP ? (int)(cols - k) / STEP : STEPS;
        if (int8) turn_weights(job->layer, block->from, block->rows, k, steps, block->turned);
        for (int i = 0; i < job->m; i += int8 ? SIDE : 2 * SIDE)
            for (int t = 0; t < block->tiles; t += 2) multiply_pair(block, t, k, steps, i, int8);
    }
    put_sums(block, int8);
}

void amx_chunk(void *context, int chunk, int thread) {
    const job_t *job = context;
    const int int8 = job->layer->format == INT8, from = chunk * job->chunk_rows;
    const int rows = least(job->chunk_rows, job->layer->rows - from);
    float *memory = job->scratch->tiles + thread * job->scratch->tile_floats;
    block_t block = {job, from, rows, tiles_of(rows), (int32_t *)(memory + INT8_ROWS * STEPS * STEP / 4),
                     (int8_t *)memory, bytes_stride(job->layer->cols)};
    begin_tiles();
    if (int8) run_block(&block, 1);
    else run_block(&block, 0);
    end_tiles();
}

int uses_tiles(const scratch_t *scratch, int32_t format, int m) {
    return scratch->extras & TILES && m >= TILE_ROWS && (format == INT8 || format == W8A8);
}

/* Rows of weights for a chunk of work, so that every thread has some chunks. */
int amx_rows(int32_t format, int rows, int threads) {
    int found = format == INT8 ? INT8_ROWS : ROWS;
    while (found > 2 * TILE && rows < 4 * threads * found) found /= 2;
    return found;
}

int64_t amx_floats(int m) { return INT8_ROWS * STEPS * STEP / 4 + (int64_t)ROWS * padded_m(m); }

#else

void amx_chunk(void *context, int chunk, int thread) { (void)context, (void)chunk, (void)thread; }
int uses_tiles(const scratch_t *scratch, int32_t format, int m) { return (void)scratch, (void)format, (void)m, 0; }
int amx_rows(int32_t format, int rows, int threads) { return (void)format, (void)threads, rows; }
int64_t amx_floats(int m) { return (void)m, 0; }

#endif
