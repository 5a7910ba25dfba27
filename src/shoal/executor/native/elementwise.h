/* Functions of single elements, on vectors. */
#pragma once
#include "simd.h"

/* eˣ to about 1 unit in the last place; 0 below -87. After Cephes' expf (Moshier). */
INLINE vf exponential(vf x) {
    const vi tiny = x < splat(-87.0f);
    const vi huge = x > splat(88.0f);
    x = (vf)(((vi)x & ~tiny & ~huge) | ((vi)splat(-87.0f) & tiny) | ((vi)splat(88.0f) & huge));
    const vf shift = splat(12582912.0f); /* 1.5 · 2²³: adding it rounds to an integer */
    const vf n = fma_lanes(x, splat(1.44269504088896341f), shift) - shift;
    vf r = fma_lanes(n, splat(-0.693359375f), x);
    r = fma_lanes(n, splat(2.12194440e-4f), r);
    vf y = splat(1.9875691500e-4f);
    y = fma_lanes(y, r, splat(1.3981999507e-3f));
    y = fma_lanes(y, r, splat(8.3334519073e-3f));
    y = fma_lanes(y, r, splat(4.1665795894e-2f));
    y = fma_lanes(y, r, splat(1.6666665459e-1f));
    y = fma_lanes(y, r, splat(5.0000001201e-1f));
    y = fma_lanes(y, r * r, r) + splat(1.0f);
    const vf two_n = (vf)((__builtin_convertvector(n, vi) + 127) << 23);
    return (vf)((vi)(y * two_n) & ~tiny);
}
INLINE vf silu(vf x) { return x / (splat(1.0f) + exponential(-x)); }
/* Hendrycks and Gimpel's GELU in its tanh form: x · σ(2u), u = √(2/π) · (x + 0.044715 x³). */
INLINE vf gelu_tanh(vf x) {
    const vf u = splat(0.7978845608028654f) * (x + splat(0.044715f) * x * x * x);
    return x / (splat(1.0f) + exponential(splat(-2.0f) * u));
}
