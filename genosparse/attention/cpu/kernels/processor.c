/* Which instruction sets this processor, and the operating system with it, can run. */

int genosparse_has(int set);
int genosparse_fast_bf16(void);

int genosparse_has(int set)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    switch (set) {
    case 0: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case 1:
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
            && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    case 2: return genosparse_has(1) && __builtin_cpu_supports("avx512bf16");
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
