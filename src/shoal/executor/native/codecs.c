/* Hidden states as they travel (executor/codecs.py says how they lie), checked on the way for what is no number.
 *
 * A row of a decode step is some kilobytes: what it costs is less the arithmetic than the memory that it touches,
 * between two forwards that have emptied the caches. */
#include "codecs.h"
#include "simd.h"
#include <math.h>

#define BLOCK 64 /* elements that share a scale in int8 */
#define TINY 1e-30f
#define MAX_SCALE (3.402823466e38f / 128)
#define EXPONENT 0x7f800000u /* all ones in what is infinite or no number */

static inline uint32_t bits_at(const void *from, int64_t i) {
    uint32_t bits;
    memcpy(&bits, (const char *)from + 4 * i, 4);
    return bits;
}

static int all_finite(const float *x, int64_t n) {
    uint32_t wrong = 0;
    for (int64_t i = 0; i < n; i++) wrong |= (bits_at(x, i) & EXPONENT) == EXPONENT;
    return !wrong;
}

static int encode_bf16(const float *x, int64_t n, uint8_t *to) {
    uint32_t wrong = 0;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = bits_at(x, i), rounded = bits + ((bits >> 16 & 1) + 0x7fff);
        const uint16_t upper = (uint16_t)(rounded >> 16);
        wrong |= (bits & EXPONENT) == EXPONENT || (rounded & EXPONENT) == EXPONENT;
        memcpy(to + 2 * i, &upper, 2);
    }
    return !wrong;
}

static int decode_bf16(const uint8_t *from, int64_t n, float *x) {
    uint32_t wrong = 0;
    for (int64_t i = 0; i < n; i++) {
        uint16_t upper;
        memcpy(&upper, from + 2 * i, 2);
        const uint32_t bits = (uint32_t)upper << 16;
        wrong |= (bits & EXPONENT) == EXPONENT;
        memcpy(x + i, &bits, 4);
    }
    return !wrong;
}

static int encode_int8(const float *x, int64_t rows, int64_t cols, uint8_t *to) {
    if (!all_finite(x, rows * cols)) return 0;
    uint8_t *elements = to + 4 * rows * ((cols + BLOCK - 1) / BLOCK);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t k = 0; k < cols; k += BLOCK, to += 4) {
            const int64_t end = cols - k < BLOCK ? cols - k : BLOCK;
            float largest = 0;
            for (int64_t i = 0; i < end; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
            const float scale = largest < TINY ? 0 : largest / 127, by = scale > 0 ? scale : INFINITY;
            memcpy(to, &scale, 4);
            for (int64_t i = 0; i < end; i++) *elements++ = (uint8_t)(int8_t)rintf(x[i] / by);
            x += end;
        }
    return 1;
}

static int decode_int8(const uint8_t *from, int64_t rows, int64_t cols, float *x) {
    const uint8_t *elements = from + 4 * rows * ((cols + BLOCK - 1) / BLOCK);
    for (int64_t row = 0; row < rows; row++)
        for (int64_t k = 0; k < cols; k += BLOCK, from += 4) {
            const int64_t end = cols - k < BLOCK ? cols - k : BLOCK;
            float scale;
            memcpy(&scale, from, 4);
            if (!(scale >= 0 && scale <= MAX_SCALE)) return 0;
            for (int64_t i = 0; i < end; i++) *x++ = (float)(int8_t)*elements++ * scale;
        }
    return 1;
}

int encode_rows(const float *x, int64_t rows, int64_t cols, int32_t codec, void *to) {
    if (codec == WIRE_BFLOAT16) return encode_bf16(x, rows * cols, to);
    if (codec == WIRE_INT8) return encode_int8(x, rows, cols, to);
    memcpy(to, x, (size_t)(rows * cols) * sizeof *x);
    return all_finite(x, rows * cols);
}

int decode_rows(const void *from, int64_t rows, int64_t cols, int32_t codec, float *x) {
    if (codec == WIRE_BFLOAT16) return decode_bf16(from, rows * cols, x);
    if (codec == WIRE_INT8) return decode_int8(from, rows, cols, x);
    memcpy(x, from, (size_t)(rows * cols) * sizeof *x);
    return all_finite(x, rows * cols);
}
