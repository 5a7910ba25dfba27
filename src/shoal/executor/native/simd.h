/* Vectors of the machine's own width, by the compiler's vector extension: the same source for every CPU.
 *
 * The build compiles everything once per instruction set (see build.py); LANES is the only difference, and can be set: both
 * widths compile for any CPU.
 * Sums are written so that their order does not depend on LANES, so the same numbers come out everywhere. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#else
#define LANES 8
#endif
#endif

#define INLINE static inline __attribute__((always_inline))
#define COLD __attribute__((noinline, unused)) static
#define UNROLL _Pragma("GCC unroll 16")
#define RESTRICT __restrict__

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef float vf_any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef int32_t vi_any __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int16_t vs_any __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
typedef int16_t vs __attribute__((vector_size(4 * LANES)));
typedef int8_t vb_any __attribute__((vector_size(2 * LANES), aligned(1), may_alias));
typedef uint8_t vub_any __attribute__((vector_size(2 * LANES), aligned(1), may_alias));
typedef int8_t vb_lanes __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef int16_t vh_lanes __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

INLINE vf load(const float *p) { return *(const vf_any *)p; }
INLINE void store(float *p, vf v) { *(vf_any *)p = v; }
INLINE vf splat(float x) {
#if LANES == 16
    return (vf){x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x};
#else
    return (vf){x, x, x, x, x, x, x, x};
#endif
}
/* a · b + c, rounded once. The build forbids the compiler to fuse on its own: it would do so in one place and not
 * in another, and the same row would come out with other bits. */
INLINE vf fma_lanes(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    union { vf v; float32x4_t parts[LANES / 4]; } x = {a}, y = {b}, to = {c};
    UNROLL for (int i = 0; i < LANES / 4; i++) to.parts[i] = vfmaq_f32(to.parts[i], x.parts[i], y.parts[i]);
    return to.v;
#else
    for (int i = 0; i < LANES; i++) a[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return a;
#endif
}
/* The larger of each two; b where they do not compare. */
INLINE vf larger(vf a, vf b) {
    const vi more = a > b;
    return (vf)(((vi)a & more) | ((vi)b & ~more));
}
/* bfloat16 is the upper half of a float. */
INLINE vf load_bf16(const uint16_t *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#elif defined(__AVX2__)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
#else
    return (vf)(__builtin_convertvector(*(const vh *)p, vu) << 16);
#endif
}
INLINE float from_bf16(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float x;
    memcpy(&x, &u, 4);
    return x;
}
INLINE uint16_t to_bf16(float x) { /* to the nearest, ties to even; no NaN comes here */
    uint32_t u;
    memcpy(&u, &x, 4);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
INLINE vf load_i8(const int8_t *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    return __builtin_convertvector(*(const vb_lanes *)p, vf);
#endif
}

/* To the nearest integer, ties to even. */
INLINE vi round_lanes(vf x) {
#if defined(__AVX512F__)
    return (vi)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
    return (vi)_mm256_cvtps_epi32((__m256)x);
#elif defined(__aarch64__)
    union { vf v; float32x4_t parts[LANES / 4]; } from = {x};
    union { int32x4_t parts[LANES / 4]; vi v; } to;
    UNROLL for (int i = 0; i < LANES / 4; i++) to.parts[i] = vcvtnq_s32_f32(from.parts[i]);
    return to.v;
#else
    vi to;
    for (int i = 0; i < LANES; i++) to[i] = (int32_t)lrintf(x[i]);
    return to;
#endif
}
/* The lower bits of each lane. */
INLINE void store_i16(int16_t *p, vi x) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16((__m512i)x));
#else
    *(vh_lanes *)p = __builtin_convertvector(x, vh_lanes);
#endif
}
INLINE void store_i8(int8_t *p, vi x) {
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((__m512i)x));
#else
    *(vb_lanes *)p = __builtin_convertvector(x, vb_lanes);
#endif
}

/* Sixteen lanes as one, whatever the machine's width, and their sum in one fixed order. */
#if LANES == 16
typedef struct { vf v; } v16;
INLINE v16 zero16(void) { return (v16){splat(0)}; }
INLINE v16 load16(const float *p) { return (v16){load(p)}; }
INLINE v16 load16_bf16(const uint16_t *p) { return (v16){load_bf16(p)}; }
INLINE v16 fma16(v16 a, v16 b, v16 c) { return (v16){fma_lanes(a.v, b.v, c.v)}; }
INLINE void store16(float *p, v16 a) { store(p, a.v); }
INLINE v16 splat16(float x) { return (v16){splat(x)}; }
INLINE v16 load16_i8(const int8_t *p) { return (v16){load_i8(p)}; }
INLINE v16 plus16(v16 a, v16 b) { return (v16){a.v + b.v}; }
INLINE v16 times16(v16 a, v16 b) { return (v16){a.v * b.v}; }
#else
typedef struct { vf a, b; } v16;
INLINE v16 zero16(void) { return (v16){splat(0), splat(0)}; }
INLINE v16 load16(const float *p) { return (v16){load(p), load(p + 8)}; }
INLINE v16 load16_bf16(const uint16_t *p) { return (v16){load_bf16(p), load_bf16(p + 8)}; }
INLINE v16 fma16(v16 a, v16 b, v16 c) { return (v16){fma_lanes(a.a, b.a, c.a), fma_lanes(a.b, b.b, c.b)}; }
INLINE void store16(float *p, v16 a) { store(p, a.a); store(p + 8, a.b); }
INLINE v16 splat16(float x) { return (v16){splat(x), splat(x)}; }
INLINE v16 load16_i8(const int8_t *p) { return (v16){load_i8(p), load_i8(p + 8)}; }
INLINE v16 plus16(v16 a, v16 b) { return (v16){a.a + b.a, a.b + b.b}; }
INLINE v16 times16(v16 a, v16 b) { return (v16){a.a * b.a, a.b * b.b}; }
#endif
/* The upper half of the lanes onto the lower, until one is left. */
INLINE float sum_lanes(vf s) {
#if LANES == 16
    s += __builtin_shufflevector(s, s, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    s += __builtin_shufflevector(s, s, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    s += __builtin_shufflevector(s, s, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    s += __builtin_shufflevector(s, s, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#else
    s += __builtin_shufflevector(s, s, 4, 5, 6, 7, 0, 1, 2, 3);
    s += __builtin_shufflevector(s, s, 2, 3, 0, 1, 6, 7, 4, 5);
    s += __builtin_shufflevector(s, s, 1, 0, 3, 2, 5, 4, 7, 6);
#endif
    return s[0];
}
INLINE float sum16(v16 a) {
#if LANES == 16
    return sum_lanes(a.v);
#else
    return sum_lanes(a.a + a.b);
#endif
}

/* Keep v in a register: the compiler would rather load it again for each use, and loads are what is short. */
#if defined(__AVX2__)
#define KEEP(v) __asm__("" : "+v"(v))
#else
#define KEEP(v) (void)(v)
#endif

/* acc += a[2i]·b[2i] + a[2i+1]·b[2i+1]: exact as long as the sums fit into 32 bits. */
INLINE vi madd(vi acc, vs a, vs b) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return acc + (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return acc + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    union { vs v; __m128i parts[LANES / 4]; } x = {a}, y = {b};
    union { __m128i parts[LANES / 4]; vi v; } sums;
    UNROLL for (int i = 0; i < LANES / 4; i++) sums.parts[i] = _mm_madd_epi16(x.parts[i], y.parts[i]);
    return acc + sums.v;
#elif defined(__aarch64__)
    union { vs v; int16x8_t parts[LANES / 4]; } x = {a}, y = {b};
    union { vi v; int32x4_t parts[LANES / 4]; } to = {acc};
    UNROLL for (int i = 0; i < LANES / 4; i++) {
        const int32x4_t low = vmull_s16(vget_low_s16(x.parts[i]), vget_low_s16(y.parts[i]));
        to.parts[i] = vaddq_s32(to.parts[i], vpaddq_s32(low, vmull_high_s16(x.parts[i], y.parts[i])));
    }
    return to.v;
#else
    for (int i = 0; i < LANES; i++) acc[i] += (int32_t)a[2 * i] * b[2 * i] + (int32_t)a[2 * i + 1] * b[2 * i + 1];
    return acc;
#endif
}
/* The same where only the sum of all lanes counts: any lane may take any product. */
INLINE vi madd_any(vi acc, vs a, vs b) {
#if defined(__aarch64__)
    union { vs v; int16x8_t parts[LANES / 4]; } x = {a}, y = {b};
    union { vi v; int32x4_t parts[LANES / 4]; } to = {acc};
    UNROLL for (int i = 0; i < LANES / 4; i++)
        to.parts[i] = vmlal_s16(to.parts[i], vget_low_s16(x.parts[i]), vget_low_s16(y.parts[i]));
    UNROLL for (int i = 0; i < LANES / 4; i++) to.parts[i] = vmlal_high_s16(to.parts[i], x.parts[i], y.parts[i]);
    return to.v;
#else
    return madd(acc, a, b);
#endif
}
INLINE vs load_i16(const int16_t *p) { return *(const vs_any *)p; }
INLINE vs load_i8_as_i16(const int8_t *p) {
#if defined(__AVX512BW__)
    return (vs)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    return (vs)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
#else
    return __builtin_convertvector(*(const vb_any *)p, vs);
#endif
}
INLINE vs load_u8_as_i16(const uint8_t *p) {
#if defined(__AVX512BW__)
    return (vs)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    return (vs)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
#else
    return __builtin_convertvector(*(const vub_any *)p, vs);
#endif
}
INLINE int32_t sum_i32(vi a) {
#if LANES == 16
    a += __builtin_shufflevector(a, a, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    a += __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    a += __builtin_shufflevector(a, a, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    a += __builtin_shufflevector(a, a, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#else
    a += __builtin_shufflevector(a, a, 4, 5, 6, 7, 0, 1, 2, 3);
    a += __builtin_shufflevector(a, a, 2, 3, 0, 1, 6, 7, 4, 5);
    a += __builtin_shufflevector(a, a, 1, 0, 3, 2, 5, 4, 7, 6);
#endif
    return a[0];
}
