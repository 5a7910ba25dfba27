#include "cpu.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

int cpu_level(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vnni"))
        return 4;
    return 3;
#else
    return 1;
#endif
}

int cpu_multiplies_bf16(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bf16") != 0;
#else
    return 0;
#endif
}

#if defined(__x86_64__)
/* Linux keeps the tiles' registers from a process until it asks for them. */
static int may_use_tiles(void) {
#if defined(__linux__) && defined(SYS_arch_prctl)
    enum { ASK = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM of asm/prctl.h, which older ones lack */
    return syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
#else
    return 0;
#endif
}

int32_t cpu_extras(void) {
    unsigned a, b, c, d, highest;
    int32_t found = 0;
    if (!__get_cpuid_count(7, 0, &highest, &b, &c, &d)) return 0;
    if ((d >> 24 & 3) == 3 && may_use_tiles()) found |= TILES; /* AMX-TILE and AMX-INT8 */
    if (highest >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a >> 4 & 1) found |= DOT_BYTES; /* AVX-VNNI */
    return found;
}
#elif defined(__aarch64__) && defined(__linux__)
int32_t cpu_extras(void) { return getauxval(AT_HWCAP) >> 20 & 1 ? DOT_BYTES : 0; } /* HWCAP_ASIMDDP */
#elif defined(__ARM_FEATURE_DOTPROD)
int32_t cpu_extras(void) { return DOT_BYTES; }
#else
int32_t cpu_extras(void) { return 0; }
#endif
