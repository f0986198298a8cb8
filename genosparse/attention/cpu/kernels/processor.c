#define _GNU_SOURCE /* syscall under -std=c11 */
/* Which instruction sets this processor, and the operating system with it, can run. */

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

int genosparse_has(int set);
int genosparse_fast_bf16(void);

#if defined(__x86_64__) && defined(__linux__)

static int has_f16c(void) /* which clang's builtin does not know before version 18 */
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c >> 29 & 1);
}

/* Linux gives the tiles of AMX, 8 KiB of state for each thread, to processes that ask for them. */
static int has_amx_bf16(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    int has_bf16 = d >> 22 & 1, has_tiles = d >> 24 & 1;
    return has_bf16 && has_tiles && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

#else

static int has_f16c(void) { return 0; }
static int has_amx_bf16(void) { return 0; }

#endif

int genosparse_has(int set)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    switch (set) {
    case 0: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    case 1:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case 2: return genosparse_has(1) && __builtin_cpu_supports("avx512bf16");
    case 3: return genosparse_has(2) && has_amx_bf16();
    }
#endif
    (void)set;
    return 0;
}

/* Whether dpbf16 takes two pairs in the time that a fused product takes one: so on AMD's processors. On Intel's it has half
 * the rate of a fused product, and float32 is as fast without the rounding. */
int genosparse_fast_bf16(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_is("amd") != 0;
#else
    return 0;
#endif
}
