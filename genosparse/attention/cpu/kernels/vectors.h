/* Vectors of LANES float32, and of LANES 32-bit units: what the kernels are written in, for each instruction set.
 *
 * A unit is what one lane of a product takes at a time: a float32, or with UNIT_BFLOAT16 two neighbouring bfloat16; with
 * UNIT_AMX besides, AMX multiplies them tile by tile.
 * Sums are float32 always.
 */
#ifndef GENOSPARSE_VECTORS_H
#define GENOSPARSE_VECTORS_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "problem.h"

#define INLINE static inline __attribute__((always_inline))

#define LOG2_E 1.4426950408889634 /* scores go to base 2, as 2^x is what there is below */

#if defined(__AVX512F__)

enum { LANES = 16 };
typedef __m512 vec;
typedef __mmask16 lanes; /* a bit for each lane */
static const lanes ALL_LANES = 0xffff;

INLINE vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vec_store(float *p, vec x) { _mm512_storeu_ps(p, x); }
INLINE vec vec_all(float x) { return _mm512_set1_ps(x); }
INLINE vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE vec vec_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
INLINE vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
INLINE vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); } /* b where one is NaN */
INLINE float vec_sum(vec x) { return _mm512_reduce_add_ps(x); }
INLINE float vec_largest(vec x) { return _mm512_reduce_max_ps(x); }
INLINE int vec_any_above(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
INLINE lanes vec_lanes(uint64_t bits) { return (lanes)bits; }
INLINE vec vec_choose(lanes chosen, vec a, vec otherwise) { return _mm512_mask_mov_ps(otherwise, chosen, a); }
INLINE vec vec_keep(lanes kept, vec a) { return _mm512_maskz_mov_ps(kept, a); }
INLINE vec vec_from_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void vec_to_half(uint16_t *p, vec x) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(x, 0)); }

#elif defined(__AVX2__)

enum { LANES = 8 };
typedef __m256 vec;
typedef __m256 lanes;

INLINE vec vec_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vec_store(float *p, vec x) { _mm256_storeu_ps(p, x); }
INLINE vec vec_all(float x) { return _mm256_set1_ps(x); }
INLINE vec vec_add(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE vec vec_sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
INLINE vec vec_mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
INLINE vec vec_fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec vec_max(vec a, vec b) { return _mm256_max_ps(a, b); } /* b where one is NaN */
INLINE float vec_sum(vec x)
{
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
INLINE float vec_largest(vec x)
{
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
INLINE int vec_any_above(vec a, vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
INLINE lanes vec_lanes(uint64_t bits)
{
    __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i found = _mm256_and_si256(_mm256_set1_epi32((int)(bits & 255)), bit);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(found, bit));
}
INLINE vec vec_choose(lanes chosen, vec a, vec otherwise) { return _mm256_blendv_ps(otherwise, a, chosen); }
INLINE vec vec_keep(lanes kept, vec a) { return _mm256_and_ps(kept, a); }
INLINE vec vec_from_half(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE void vec_to_half(uint16_t *p, vec x) { _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, 0)); }

#else
#error "compile for AVX2 and FMA, or for AVX-512"
#endif

enum { VECTORS = TILE / LANES }; /* of a row of a tile */

INLINE lanes lanes_of(uint64_t bits, int vector) { return vec_lanes(bits >> (vector * LANES)); }

/* 2^x to 2 ulp for x up to 127; below -127 exactly 0 or no more than 2^-127, and exactly 0 at -inf; NaN stays NaN.
 * The coefficients are the minimax polynomials of 2^f by their relative error: 7.5e-8, and where the result becomes
 * bfloat16, which has 2e-3, 7.5e-5. */
#if defined(__AVX512F__)
INLINE vec vec_exp2(vec x)
{
    vec f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); /* x - floor(x), and 0 at -inf */
#if defined(UNIT_BFLOAT16)
    vec p = vec_all(0.07802452264047964f);
    p = vec_fma(p, f, vec_all(0.226067155427483f));
    p = vec_fma(p, f, vec_all(0.6958335404947528f));
    p = vec_fma(p, f, vec_all(0.9999252185627154f));
#else
    vec p = vec_all(0.0018775766751787312f);
    p = vec_fma(p, f, vec_all(0.008989340090521965f));
    p = vec_fma(p, f, vec_all(0.055826318053277646f));
    p = vec_fma(p, f, vec_all(0.2401536170443786f));
    p = vec_fma(p, f, vec_all(0.6931530732001692f));
    p = vec_fma(p, f, vec_all(0.9999999250635262f));
#endif
    return _mm512_scalef_ps(p, x); /* p * 2^floor(x) */
}
#else
INLINE vec vec_exp2(vec x)
{
    x = vec_max(vec_all(-127.0f), x);
    vec n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = vec_sub(x, n);
    vec p = vec_all(0.0013276471517955674f);
    p = vec_fma(p, f, vec_all(0.009675541330617094f));
    p = vec_fma(p, f, vec_all(0.05550713274964601f));
    p = vec_fma(p, f, vec_all(0.24022119723935212f));
    p = vec_fma(p, f, vec_all(0.6931469670638631f));
    p = vec_fma(p, f, vec_all(1.0000000716546547f));
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return vec_mul(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))); /* 0 where n is -127 */
}
#endif

/* --- units --- */

#if defined(UNIT_BFLOAT16)

enum { PER_UNIT = 2 };
typedef uint32_t unit;
typedef __m512i units;
INLINE units units_load(const unit *p) { return _mm512_loadu_si512(p); }
INLINE units units_all(const unit *p) { return _mm512_set1_epi32((int)*p); }
INLINE vec units_fma(units a, units b, vec sum) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
/* Round the neighbours of a row: 2 vectors become one of units. */
INLINE void units_store_row(unit *p, vec low, vec high)
{
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
/* The order of a row of weights: of the units of two vectors, packed_unit(u) tells the place of the u-th. The processor packs
 * two vectors quarter by quarter; the values' cross has the same order. */
INLINE int packed_unit(int u) { return u % 8 / 2 * 4 + u / 8 * 2 + u % 2; }
INLINE void units_store(unit *p, units x) { _mm512_storeu_si512(p, x); }
INLINE void units_store_packed(unit *p, vec low, vec high)
{
    units rounded = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    units_store(p, _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), rounded));
}
/* The lower and the upper bfloat16 of units. */
INLINE vec units_lower(units x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
INLINE vec units_upper(units x) { return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(-65536))); }
/* 2^x of two vectors as bfloat16, packed, for x from -126 to 127; 0 below, and where lanes are not kept. By a root mean square
 * of 0.21 % (rounding alone is 0.17 %) and 0.75 % at the most, 0 in the mean.
 *
 * The exponent and the fraction of x, in eighths of bits, are the exponent and the mantissa of 1 + f; 2^f is less by about
 * f * (0.34 - 0.33 f), which 16-bit integers multiply, 32 at a time. */
INLINE units units_exp2(vec low, lanes of_low, vec high, lanes of_high)
{
    const vec steps = vec_all(256.0f), bias = vec_all(256.0f * 127.0f - 0.33f);
    __m512i a = _mm512_maskz_cvtps_epi32(of_low, vec_fma(low, steps, bias));
    __m512i b = _mm512_maskz_cvtps_epi32(of_high, vec_fma(high, steps, bias));
    __m512i x = _mm512_packus_epi32(a, b), f = _mm512_slli_epi16(x, 8);
    __m512i slope = _mm512_sub_epi16(_mm512_set1_epi16(87), _mm512_mulhi_epu16(f, _mm512_set1_epi16(85)));
    x = _mm512_sub_epi16(x, _mm512_mulhi_epu16(f, slope));
    return _mm512_avg_epu16(x, _mm512_setzero_si512()); /* from 8 bits of fraction to 7, rounded */
}
/* Round two rows, each unit a value of the one and the value below it of the other. */
INLINE void units_store_cross(unit *p, vec upper, vec lower)
{
    static const uint16_t by_turns[32] __attribute__((aligned(64))) = {
        0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31,
    };
    __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(lower, upper);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(_mm512_load_si512(by_turns), rounded));
}

#else

enum { PER_UNIT = 1 };
typedef float unit;
typedef vec units;
INLINE units units_load(const unit *p) { return vec_load(p); }
INLINE units units_all(const unit *p) { return vec_all(*p); }
INLINE vec units_fma(units a, units b, vec sum) { return vec_fma(a, b, sum); }

#endif

enum {
    DIM_STEP = 16 * PER_UNIT,      /* head sizes are padded to multiples of this */
    MAX_DIM = 128,                 /* padded */
    TILE_UNITS = TILE / PER_UNIT,  /* of a tile's row */
};

INLINE int64_t padded_dim(int64_t head_dim) { return (head_dim + DIM_STEP - 1) / DIM_STEP * DIM_STEP; }

#endif
