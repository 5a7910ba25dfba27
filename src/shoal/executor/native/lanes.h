/* Sixteen rows of weights that lie interleaved in a tile, each a lane of its own. */
#pragma once
#include "job.h"
#include "simd.h"

/* Sixteen sums, and sixteen pairs of integers of 16 bits. */
#if LANES == 16
typedef struct { vi a; } i16x;
typedef struct { vs a; } pairs;
#define EACH(f) f(a)
#else
typedef struct { vi a, b; } i16x;
typedef struct { vs a, b; } pairs;
#define EACH(f) f(a) f(b)
#endif

INLINE vi splat_i32(int32_t x) { return (vi){0} + x; }
INLINE i16x all16(int32_t x) {
    i16x to;
#define PART(p) to.p = splat_i32(x);
    EACH(PART)
#undef PART
    return to;
}
INLINE i16x sum_both(i16x x, i16x y) {
#define PART(p) x.p += y.p;
    EACH(PART)
#undef PART
    return x;
}
INLINE v16 to_floats(i16x x) {
    v16 to;
#if LANES == 16
    to.v = __builtin_convertvector(x.a, vf);
#else
    to.a = __builtin_convertvector(x.a, vf);
    to.b = __builtin_convertvector(x.b, vf);
#endif
    return to;
}
/* The last tile, of which what is behind the last row is dropped. One copy in each file: with its loop at every
 * place that puts a tile, gcc needs a minute for one file. */
COLD void put_last_tile(const job_t *job, int i, int r, const float *values) {
    for (int l = 0; r + l < job->layer->rows; l++) put(job, i, r + l, values[l]);
}
/* As put, for a tile. */
INLINE void put_tile(const job_t *job, int i, int r, v16 values) {
    if (r + TILE > job->layer->rows) {
        float each[TILE];
        store16(each, values);
        put_last_tile(job, i, r, each);
        return;
    }
    float *to = job->out + i * job->stride + r;
    if (job->layer->bias) values = plus16(values, load16(job->layer->bias + r));
    values = times16(values, splat16(job->factor));
    store16(to, job->how == ADD ? plus16(load16(to), values) : values);
}
