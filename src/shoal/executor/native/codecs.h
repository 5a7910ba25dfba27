/* Hidden states on the wire. */
#pragma once
#include <stdint.h>

enum { WIRE_FLOAT32, WIRE_BFLOAT16, WIRE_INT8, WIRE_INT6 };

/* Bytes of one row. */
int64_t encoded_row_bytes(int64_t cols, int32_t codec);
/* From x[rows][cols] to the wire and back. Neither side need be aligned there.
 * Both return 1, or 0 when a value is not finite, or int6's outliers are not in order: then what was written means
 * nothing. */
int encode_rows(const float *x, int64_t rows, int64_t cols, int32_t codec, void *to);
int decode_rows(const void *from, int64_t rows, int64_t cols, int32_t codec, float *x);
