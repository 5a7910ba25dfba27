/* Sine and cosine with the same bits everywhere: a C library's differ by machine. In double, in one fixed order.
 * After fdlibm's __kernel_sindf and __kernel_cosdf (Sun Microsystems, 1993): right to 0.501 units in the last place
 * of a float, for angles up to 2²⁰ quarter turns. */
#pragma once
#include <stdint.h>

static inline double sine_near_zero(double x) {
    const double z = x * x, s = z * x;
    const double tail = -0.000198393348360966317347 + z * 0.0000027183114939898219064;
    return (x + s * (-0.166666666416265235595 + z * 0.0083333293858894631756)) + s * (z * z) * tail;
}
static inline double cosine_near_zero(double x) {
    const double z = x * x, w = z * z;
    const double tail = -0.00138867637746099294692 + z * 0.0000243904487962774090654;
    return ((1.0 + z * -0.499999997251031003120) + w * 0.0416666233237390631894) + (w * z) * tail;
}
static inline void sine_cosine(float angle, float *sine, float *cosine) {
    const double shift = 6755399441055744.0; /* 1.5 · 2⁵²: adding it rounds to an integer */
    const double turns = ((double)angle * 0.636619772367581343076 + shift) - shift; /* quarter turns */
    /* π/2 in two parts, of which the first has 33 bits: its product is exact. */
    const double rest = ((double)angle - turns * 1.57079632673412561417) - turns * 6.07710050650619224932e-11;
    const double s = sine_near_zero(rest), c = cosine_near_zero(rest);
    const int64_t quarter = (int64_t)turns & 3;
    const double at[4] = {s, c, -s, -c};
    *sine = (float)at[quarter];
    *cosine = (float)at[(quarter + 1) & 3];
}
