/* What this CPU can run. */
#pragma once
#include <stdint.h>

/* 3 for AVX2 and FMA, 4 for AVX-512 with VNNI, else 1: the best of our libraries for it. */
int cpu_level(void);
/* Whether it multiplies bfloat16 in hardware. */
int cpu_multiplies_bf16(void);

/* Instructions that some CPUs of a level have and others not. Where they are used, the bits are the same. */
enum {
    DOT_BYTES = 1,  /* products of bytes, four summed at once: AVX-VNNI, or ARM's dot products */
    TILES = 2       /* products of matrices of bytes: AMX */
};
/* Those that this CPU has and the system lets us use. */
int32_t cpu_extras(void);
