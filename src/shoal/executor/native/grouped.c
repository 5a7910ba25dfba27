/* Weights in groups of a row, as they are published: a weight is scale · (integer - zero) + minimum, with a scale
 * and perhaps a minimum for each group. Integers have 4 bits or 8.
 *
 * Sixteen rows of weights lie interleaved in a tile (kernels/tiles.py), and each is one of sixteen lanes, whatever
 * the machine's width: the products of a pair of columns are one instruction for all of them, nothing is added
 * across lanes, and the scales of a group are one vector. A row of x is quantised to 16 bits. Of each 32 columns,
 * or 16 where groups are that small, products are summed exactly, then scaled and added as floats, one after the
 * other. So the bits of a row depend neither on the rows beside it, nor on the number of threads, nor on the
 * machine. */
#include "lanes.h"

#define CHUNK 32  /* columns taken together: in the first half of them and the second */
#define STEPS 8   /* pairs of columns in half a chunk */
#define PAIRS 32  /* integers of one pair of columns in a tile */
#define AHEAD 2048 /* bytes of weights fetched ahead of their use */

/* sum + weights · x for two columns; x is both of them in 32 bits. */
INLINE i16x madd16(i16x sum, pairs weights, int32_t x) {
    const vs both = (vs)splat_i32(x);
#define PART(p) sum.p = madd(sum.p, weights.p, both);
    EACH(PART)
#undef PART
#define PART(p) KEEP(sum.p);
    EACH(PART) /* or gcc puts all products of a chunk into memory, and adds them at its end */
#undef PART
    return sum;
}
INLINE int32_t pair_at(const int16_t *x) {
    int32_t both;
    memcpy(&both, x, sizeof both);
    return both;
}

INLINE pairs load_bytes(const uint8_t *p) {
    pairs to;
    to.a = load_i8_as_i16((const int8_t *)p);
#if LANES == 8
    to.b = load_i8_as_i16((const int8_t *)p + 16);
#endif
    return to;
}
/* Two nibbles a byte: the lower ones, and the upper ones. */
INLINE void load_nibbles(const uint8_t *p, pairs *low, pairs *high) {
    pairs bytes;
    bytes.a = load_u8_as_i16(p);
#if LANES == 8
    bytes.b = load_u8_as_i16(p + 16);
#endif
#define PART(q) low->q = bytes.q & 15, high->q = bytes.q >> 4;
    EACH(PART)
#undef PART
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
/* Scales or minima of the tile's rows, for the group at `at`. */
INLINE v16 load_group(const linear_t *layer, const void *from, int64_t at) {
    if (!layer->halves) return load16((const float *)from + at * TILE);
    const uint16_t *halves = (const uint16_t *)from + at * TILE;
#if defined(__AVX512F__)
    return (v16){(vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)halves))};
#elif defined(__F16C__)
    return (v16){(vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves)),
                 (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(halves + 8)))};
#else
    float each[TILE];
    for (int r = 0; r < TILE; r++) each[r] = from_f16(halves[r]);
    return load16(each);
#endif
}

INLINE int unit_of(const linear_t *layer) { return layer->group == 16 ? 16 : 32; }

void sum_units(const job_t *job, int i) {
    const int64_t cols = job->layer->cols, unit = unit_of(job->layer);
    const int16_t *q = job->scratch->quantised + i * quantised_stride(cols);
    int32_t *sums = job->scratch->unit_sums + i * unit_sums_stride(cols);
    for (int64_t k = 0; k < cols; k += unit, sums++) {
        int32_t sum = 0;
        for (int64_t t = 0; t < unit; t++) sum += q[k + t];
        *sums = sum;
    }
}

/* One tile of weights with rows i … of x, m of them. */
INLINE void grouped_tile(const job_t *job, int tile, int i, int m, int bits, int unit) {
    const linear_t *layer = job->layer;
    const int64_t cols = layer->cols, stride = quantised_stride(cols), sums_stride = unit_sums_stride(cols);
    const int16_t *x = job->scratch->quantised + i * stride;
    const int32_t *unit_sums = job->scratch->unit_sums + i * sums_stride;
    const uint8_t *w = (const uint8_t *)layer->weights + (int64_t)tile * TILE * cols * bits / 8;
    const int per = unit == 16 ? 1 : layer->group / unit; /* units of a group */
    int64_t group = (int64_t)tile * (cols / layer->group);
    /* What the second half of a chunk adds to: where units are whole chunks, the first half's sums, which leaves
     * registers for more rows. Where a sum takes some cycles (VNNI) and registers are many, two are faster. */
    const int apart = unit == 16 || LANES == 16;
    v16 acc[8];
    UNROLL for (int t = 0; t < m; t++) acc[t] = zero16();
    for (int64_t k = 0, within = 0; k < cols; k += CHUNK, x += CHUNK, unit_sums += CHUNK / unit) {
        i16x sums[2][8];
        UNROLL for (int t = 0; t < m; t++) {
            sums[0][t] = all16(-layer->zero * unit_sums[t * sums_stride]);
            sums[1][t] = all16(unit == 16 ? -layer->zero * unit_sums[t * sums_stride + 1] : 0);
        }
        UNROLL for (int s = 0; s < STEPS; s++, w += PAIRS) {
            pairs first, second;
            if (bits == 4) {
                load_nibbles(w, &first, &second);
            } else {
                first = load_bytes(w);
                second = load_bytes(w + STEPS * PAIRS);
            }
            if (s % 2 == 0) __builtin_prefetch(w + AHEAD);
            UNROLL for (int t = 0; t < m; t++) {
                sums[0][t] = madd16(sums[0][t], first, pair_at(x + t * stride + 2 * s));
                sums[apart][t] = madd16(sums[apart][t], second, pair_at(x + t * stride + 2 * (s + STEPS)));
            }
        }
        if (bits == 8) w += STEPS * PAIRS;
        for (int u = 0; u < CHUNK / unit; u++) {
            const v16 scale = load_group(layer, layer->scales, group);
            UNROLL for (int t = 0; t < m; t++) {
                const i16x sum = unit == 32 && apart ? sum_both(sums[0][t], sums[1][t]) : sums[u][t];
                acc[t] = fma16(to_floats(sum), scale, acc[t]);
            }
            if (layer->minima) {
                const v16 minimum = load_group(layer, layer->minima, group);
                UNROLL for (int t = 0; t < m; t++)
                    acc[t] = fma16(minimum, splat16((float)unit_sums[t * sums_stride + u]), acc[t]);
            }
            if (++within == per) {
                within = 0;
                group++;
            }
        }
    }
    UNROLL for (int t = 0; t < m; t++)
        put_tile(job, i + t, tile * TILE, times16(acc[t], splat16(job->scratch->row_scales[i + t])));
}

/* Rows of x take a tile together, as many as the registers hold. Without vectors of this width that is not worth
 * the time of compiling it. */
INLINE void grouped_rows(const job_t *job, int from, int to, int bits, int unit) {
    int i = 0;
#if LANES == 16
    for (; i + 8 <= job->m; i += 8)
        for (int tile = from; tile < to; tile++) grouped_tile(job, tile, i, 8, bits, unit);
#endif
#if defined(__AVX2__)
    for (; i + 4 <= job->m; i += 4)
        for (int tile = from; tile < to; tile++) grouped_tile(job, tile, i, 4, bits, unit);
    for (; i + 2 <= job->m; i += 2)
        for (int tile = from; tile < to; tile++) grouped_tile(job, tile, i, 2, bits, unit);
#endif
    for (; i < job->m; i++)
        for (int tile = from; tile < to; tile++) grouped_tile(job, tile, i, 1, bits, unit);
}

void grouped_chunk(void *context, int chunk, int thread) {
    const job_t *job = context;
    (void)thread;
    const int tiles = (job->layer->rows + TILE - 1) / TILE, from = chunk * (INT_CHUNK / TILE);
    const int to = least(from + INT_CHUNK / TILE, tiles), unit = unit_of(job->layer);
    if (job->layer->format == GROUPED4) {
        if (unit == 16) grouped_rows(job, from, to, 4, 16);
        else grouped_rows(job, from, to, 4, 32);
    } else {
        if (unit == 16) grouped_rows(job, from, to, 8, 16);
        else grouped_rows(job, from, to, 8, 32);
    }
}
