/* Vectors of LANES float32, and of LANES 32-bit units: what the kernels are written in, for each instruction set.
 *
 * A unit is what one lane of a product takes at a time: a float32, or with UNIT_BFLOAT16 two neighbouring bfloat16.
 * Sums are float32 always.
 */
#ifndef GENOSPARSE_VECTORS_H
#define GENOSPARSE_VECTORS_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "problem.h"

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)

enum { LANES = 16 };
typedef __m512 vec;
typedef __mmask16 lanes; /* a bit for each lane */

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
INLINE lanes vec_lanes(uint64_t bits) { return (lanes)bits; }
INLINE vec vec_choose(lanes chosen, vec a, vec otherwise) { return _mm512_mask_mov_ps(otherwise, chosen, a); }
INLINE vec vec_keep(lanes kept, vec a) { return _mm512_maskz_mov_ps(kept, a); }
INLINE vec vec_round(vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vec vec_scale_by_power(vec x, vec n) { return _mm512_scalef_ps(x, n); } /* x * 2^n */
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
INLINE lanes vec_lanes(uint64_t bits)
{
    __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    __m256i found = _mm256_and_si256(_mm256_set1_epi32((int)(bits & 255)), bit);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(found, bit));
}
INLINE vec vec_choose(lanes chosen, vec a, vec otherwise) { return _mm256_blendv_ps(otherwise, a, chosen); }
INLINE vec vec_keep(lanes kept, vec a) { return _mm256_and_ps(kept, a); }
INLINE vec vec_round(vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vec vec_scale_by_power(vec x, vec n) /* x * 2^n for n from -127, where it is 0, to 127 */
{
    __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
INLINE vec vec_from_half(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE void vec_to_half(uint16_t *p, vec x) { _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x, 0)); }

#else
#error "compile for AVX2 and FMA, or for AVX-512"
#endif

enum { VECTORS = TILE / LANES }; /* of a row of a tile */

INLINE lanes lanes_of(uint64_t bits, int vector) { return vec_lanes(bits >> (vector * LANES)); }

/* 2^x to 1 ulp for x up to 127; below -127 exactly 0 or no more than 2^-127, and exactly 0 at -inf; NaN stays NaN.
 * The coefficients are the minimax polynomials of 2^f on [-1/2, 1/2], by their relative error (7.5e-8; where the result
 * becomes bfloat16, 2.6e-6). */
INLINE vec vec_exp2(vec x)
{
#if defined(__AVX512F__)
    x = vec_max(vec_all(-200.0f), x);
#else
    x = vec_max(vec_all(-127.0f), x);
#endif
    vec n = vec_round(x), f = vec_sub(x, n);
#if defined(UNIT_BFLOAT16)
    vec p = vec_all(0.0095701014340611f);
    p = vec_fma(p, f, vec_all(0.05591786028197158f));
    p = vec_fma(p, f, vec_all(0.2402474483964589f));
    p = vec_fma(p, f, vec_all(0.6931218147436669f));
    p = vec_fma(p, f, vec_all(0.999999261442165f));
#else
    vec p = vec_all(0.0013276471517955674f);
    p = vec_fma(p, f, vec_all(0.009675541330617094f));
    p = vec_fma(p, f, vec_all(0.05550713274964601f));
    p = vec_fma(p, f, vec_all(0.24022119723935212f));
    p = vec_fma(p, f, vec_all(0.6931469670638631f));
    p = vec_fma(p, f, vec_all(1.0000000716546547f));
#endif
    return vec_scale_by_power(p, n);
}

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
/* Round two rows, each unit a value of the one and the value below it of the other. */
INLINE void units_store_cross(unit *p, vec upper, vec lower)
{
    __m512i first = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(upper));
    __m512i second = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(lower));
    _mm512_storeu_si512(p, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
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
