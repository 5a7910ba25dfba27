/* Hidden states as they travel (executor/codecs.py says how they lie), checked on the way for what is no number.
 *
 * A row of a decode step is some kilobytes: what it costs is less the arithmetic than the memory that it touches,
 * between two forwards that have emptied the caches. */
#include "codecs.h"
#include "simd.h"
#include <math.h>

#define BLOCK 64 /* elements that share a scale in int8 and int6 */
#define GROUP 256 /* elements of which int6 keeps the OUTLIERS largest in 16 bits; in fewer, as many of them */
#define OUTLIERS 3
#define TINY 1e-30f
#define MAX_FLOAT 3.402823466e38f
#define MAX_SCALE (MAX_FLOAT / 128)
#define MAX_INT6_SCALE (MAX_FLOAT / 32)
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

/* The upper half is the nearest bfloat16, of two as near the even one; the lower half is of no use. */
static inline uint32_t round_bf16(uint32_t bits) { return bits + ((bits >> 16 & 1) + 0x7fff); }

static int encode_bf16(const float *x, int64_t n, uint8_t *to) {
    uint32_t wrong = 0;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = bits_at(x, i), rounded = round_bf16(bits);
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

static int64_t outliers_of(int64_t elements) { return (OUTLIERS * elements + GROUP - 1) / GROUP; }

static int64_t outliers_of_row(int64_t cols) { return cols / GROUP * OUTLIERS + outliers_of(cols % GROUP); }

static int64_t packed_bytes(int64_t elements) { return (6 * elements + 7) / 8; }

int64_t encoded_row_bytes(int64_t cols, int32_t codec) {
    const int64_t blocks = (cols + BLOCK - 1) / BLOCK;
    if (codec == WIRE_INT6) return 3 * outliers_of_row(cols) + 2 * blocks + packed_bytes(cols);
    if (codec == WIRE_INT8) return 4 * blocks + cols;
    return cols * (codec == WIRE_BFLOAT16 ? 2 : 4);
}

/* Where the parts of a row in int6 lie. */
typedef struct {
    uint8_t *places, *values, *scales, *elements;
} int6_row_t;

static int6_row_t int6_row(uint8_t *row, int64_t cols) {
    const int64_t outliers = outliers_of_row(cols);
    uint8_t *const values = row + outliers, *const scales = values + 2 * outliers;
    return (int6_row_t){row, values, scales, scales + 2 * ((cols + BLOCK - 1) / BLOCK)};
}

/* Where the largest elements of a group are, in ascending order; of two as large, the first. */
static int64_t find_outliers(const float *x, int64_t n, uint8_t *places) {
    const int64_t count = outliers_of(n);
    uint32_t largest[OUTLIERS] = {0};
    int64_t found = 0;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t size = bits_at(x, i) & 0x7fffffff;
        if (found == count && size <= largest[count - 1]) continue;
        int64_t at = found < count ? found++ : count - 1;
        for (; at > 0 && size > largest[at - 1]; at--) {
            largest[at] = largest[at - 1];
            places[at] = places[at - 1];
        }
        largest[at] = size;
        places[at] = (uint8_t)i;
    }
    for (int64_t i = 1; i < count; i++)
        for (int64_t at = i; at > 0 && places[at] < places[at - 1]; at--) {
            const uint8_t later = places[at - 1];
            places[at - 1] = places[at];
            places[at] = later;
        }
    return count;
}

/* Four elements are in three bytes, the first lowest. */
static void pack_int6(const int8_t *elements, int64_t n, uint8_t *to) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4, to += 3) {
        const uint32_t four = (elements[i] & 63u) | (elements[i + 1] & 63u) << 6 | (elements[i + 2] & 63u) << 12 |
                              (elements[i + 3] & 63u) << 18;
        to[0] = (uint8_t)four;
        to[1] = (uint8_t)(four >> 8);
        to[2] = (uint8_t)(four >> 16);
    }
    uint32_t rest = 0;
    for (int64_t k = i; k < n; k++) rest |= (elements[k] & 63u) << 6 * (k - i);
    for (int64_t byte = 0; byte < packed_bytes(n - i); byte++) to[byte] = (uint8_t)(rest >> 8 * byte);
}

static void unpack_int6(const uint8_t *from, int64_t n, int8_t *elements) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4, from += 3) {
        const uint32_t four = from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16;
        for (int k = 0; k < 4; k++) elements[i + k] = (int8_t)((int)((four >> 6 * k & 63) ^ 32) - 32);
    }
    uint32_t rest = 0;
    for (int64_t byte = 0; byte < packed_bytes(n - i); byte++) rest |= (uint32_t)from[byte] << 8 * byte;
    for (int64_t k = i; k < n; k++) elements[k] = (int8_t)((int)((rest >> 6 * (k - i) & 63) ^ 32) - 32);
}

static void encode_int6_block(const float *x, int64_t n, uint8_t *scale_to, uint8_t *to) {
    int8_t elements[BLOCK];
    float largest = 0, scale;
    for (int64_t i = 0; i < n; i++) largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
    const float exact = largest < TINY ? 0 : largest / 31;
    const uint32_t rounded = round_bf16(bits_at(&exact, 0)) & 0xffff0000u;
    memcpy(&scale, &rounded, 4);
    const uint16_t upper = (uint16_t)(rounded >> 16);
    memcpy(scale_to, &upper, 2);
    const float by = scale > 0 ? scale : INFINITY;
    for (int64_t i = 0; i < n; i++) elements[i] = (int8_t)rintf(x[i] / by);
    pack_int6(elements, n, to);
}

static int encode_int6(const float *x, int64_t cols, uint8_t *to) {
    if (!all_finite(x, cols)) return 0;
    int6_row_t row = int6_row(to, cols);
    for (int64_t group = 0; group < cols; group += GROUP) {
        const int64_t n = cols - group < GROUP ? cols - group : GROUP;
        float rest[GROUP];
        memcpy(rest, x + group, (size_t)n * sizeof *x);
        const int64_t count = find_outliers(rest, n, row.places);
        for (int64_t i = 0; i < count; i++) rest[row.places[i]] = 0;
        for (int64_t i = 0; i < count; i++, row.values += 2)
            if (!encode_bf16(x + group + row.places[i], 1, row.values)) return 0;
        row.places += count;
        for (int64_t k = 0; k < n; k += BLOCK, row.scales += 2) {
            const int64_t end = n - k < BLOCK ? n - k : BLOCK;
            encode_int6_block(rest + k, end, row.scales, row.elements);
            row.elements += packed_bytes(end);
        }
    }
    return 1;
}

static int decode_int6(const uint8_t *from, int64_t cols, float *x) {
    int6_row_t row = int6_row((uint8_t *)from, cols);
    for (int64_t group = 0; group < cols; group += GROUP, x += GROUP) {
        const int64_t n = cols - group < GROUP ? cols - group : GROUP, count = outliers_of(n);
        for (int64_t k = 0; k < n; k += BLOCK, row.scales += 2) {
            const int64_t end = n - k < BLOCK ? n - k : BLOCK;
            int8_t elements[BLOCK];
            float scale;
            if (!decode_bf16(row.scales, 1, &scale) || !(scale >= 0 && scale <= MAX_INT6_SCALE)) return 0;
            unpack_int6(row.elements, end, elements);
            for (int64_t i = 0; i < end; i++) x[k + i] = (float)elements[i] * scale;
            row.elements += packed_bytes(end);
        }
        for (int64_t i = 0; i < count; i++, row.values += 2) {
            const int64_t place = row.places[i];
            if (place >= n || (i && place <= row.places[i - 1])) return 0;
            if (!decode_bf16(row.values, 1, x + place)) return 0;
        }
        row.places += count;
    }
    return 1;
}

int encode_rows(const float *x, int64_t rows, int64_t cols, int32_t codec, void *to) {
    if (codec == WIRE_BFLOAT16) return encode_bf16(x, rows * cols, to);
    if (codec == WIRE_INT8) return encode_int8(x, rows, cols, to);
    if (codec == WIRE_INT6) {
        int finite = 1;
        const int64_t bytes = encoded_row_bytes(cols, codec);
        for (int64_t row = 0; row < rows; row++)
            finite &= encode_int6(x + row * cols, cols, (uint8_t *)to + row * bytes);
        return finite;
    }
    memcpy(to, x, (size_t)(rows * cols) * sizeof *x);
    return all_finite(x, rows * cols);
}

int decode_rows(const void *from, int64_t rows, int64_t cols, int32_t codec, float *x) {
    if (codec == WIRE_BFLOAT16) return decode_bf16(from, rows * cols, x);
    if (codec == WIRE_INT8) return decode_int8(from, rows, cols, x);
    if (codec == WIRE_INT6) {
        int finite = 1;
        const int64_t bytes = encoded_row_bytes(cols, codec);
        for (int64_t row = 0; row < rows; row++)
            finite &= decode_int6((const uint8_t *)from + row * bytes, cols, x + row * cols);
        return finite;
    }
    memcpy(x, from, (size_t)(rows * cols) * sizeof *x);
    return all_finite(x, rows * cols);
}
