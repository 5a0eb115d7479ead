/* As many floats at a time as the processor's registers hold, in the vectors of GCC and Clang. */
#ifndef KIV_VECTORS_H
#define KIV_VECTORS_H

#include <math.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "kiv.h"

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define OR_FAIL(room) if (!(room)) { kiv_no_memory(); return; }
#define NONE (-3.4028235e38f) /* for the logarithm of nothing, so that a difference with it is a number */
#define ROUND_UP(n, to) (((n) + (to) - 1) / (to) * (to))

typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t VI __attribute__((vector_size(4 * LANES)));
typedef uint32_t VU __attribute__((vector_size(4 * LANES)));
typedef uint16_t VH __attribute__((vector_size(2 * LANES)));
typedef int8_t VB __attribute__((vector_size(LANES)));
typedef float V4 __attribute__((vector_size(16)));

static inline V load(const float *from) {
    V v;
    memcpy(&v, from, sizeof v);
    return v;
}

static inline void store(float *to, V v) { memcpy(to, &v, sizeof v); }

/* The first `some` of a vector's numbers, `rest` for the others. */
static inline V load_some(const float *from, int64_t some, float rest) {
    V v = (V){0} + rest;
    if (some >= LANES) return load(from);
    for (int64_t i = 0; i < some; i++) v[i] = from[i];
    return v;
}

static inline void store_some(float *to, V v, int64_t some) {
    if (some >= LANES) store(to, v);
    else
        for (int64_t i = 0; i < some; i++) to[i] = v[i];
}

static inline V splat(float x) { /* `(V){0} + x` would be an addition: of -0 it makes 0 */
#if LANES == 16
    return (V)_mm512_set1_ps(x);
#elif LANES == 8
    return (V)_mm256_set1_ps(x);
#else
    return (V){x, x, x, x};
#endif
}

/* Numbers of 16 bits, bfloat16, as the upper halves of floats. */
static inline V upper_halves(VH halves) {
#if LANES == 16
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)halves), 16);
#elif LANES == 8
    return (V)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)halves), 16);
#else
    return (V)(__builtin_convertvector(halves, VU) << 16);
#endif
}

static inline V pick(VI mask, V yes, V no) { return (V)(((VI)yes & mask) | ((VI)no & ~mask)); }

/* A bit for each number of a mask. */
static inline uint32_t bits_of(VI mask) {
#if LANES == 16
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#elif LANES == 8
    return (uint32_t)_mm256_movemask_ps((__m256)mask);
#else
    uint32_t bits = 0;
    for (int lane = 0; lane < LANES; lane++) bits |= (uint32_t)(mask[lane] & 1) << lane;
    return bits;
#endif
}

/* Put the numbers whose bits are set together. Returns how many they are. */
static inline int64_t compress(V v, uint32_t bits, float *to) {
#if LANES == 16
    int count = __builtin_popcount(bits);
    _mm512_mask_storeu_ps(to, (__mmask16)((1u << count) - 1), _mm512_maskz_compress_ps((__mmask16)bits, (__m512)v));
#else
    int64_t count = 0;
    if (bits == (1u << LANES) - 1) store(to, v), count = LANES;
    else for (; bits; bits &= bits - 1) to[count++] = v[__builtin_ctz(bits)];
#endif
    return count;
}

/* The larger or smaller of two; the second one if one of them is not a number. */
static inline V larger(V a, V b) {
#if LANES == 16
    return (V)_mm512_max_ps((__m512)a, (__m512)b);
#elif LANES == 8
    return (V)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return pick(a > b, a, b);
#endif
}

static inline V smaller(V a, V b) {
#if LANES == 16
    return (V)_mm512_min_ps((__m512)a, (__m512)b);
#elif LANES == 8
    return (V)_mm256_min_ps((__m256)a, (__m256)b);
#else
    return pick(a < b, a, b);
#endif
}

#define LARGER(a, b) \
    ({ \
        __typeof__(a) a_ = a, b_ = b; \
        __typeof__(a_ > b_) mask_ = a_ > b_; \
        (__typeof__(a_))(((__typeof__(mask_))a_ & mask_) | ((__typeof__(mask_))b_ & ~mask_)); \
    })

#define QUARTER(v, i) __builtin_shufflevector(v, v, 4 * (i), 4 * (i) + 1, 4 * (i) + 2, 4 * (i) + 3)
#define SWAP2(v) __builtin_shufflevector(v, v, 2, 3, 0, 1)
#define SWAP1(v) __builtin_shufflevector(v, v, 1, 0, 3, 2)

static inline float sum_of(V v) {
#if LANES == 16
    V4 four = (QUARTER(v, 0) + QUARTER(v, 2)) + (QUARTER(v, 1) + QUARTER(v, 3));
#elif LANES == 8
    V4 four = QUARTER(v, 0) + QUARTER(v, 1);
#else
    V4 four = v;
#endif
    four += SWAP2(four);
    four += SWAP1(four);
    return four[0];
}

/* The sums of four vectors. */
static inline V4 sums_of(V a, V b, V c, V d) {
#if LANES == 16
    __m512 x = (__m512)a, y = (__m512)b, z = (__m512)c, w = (__m512)d;
    __m512 two = _mm512_add_ps(_mm512_unpacklo_ps(x, y), _mm512_unpackhi_ps(x, y));
    __m512 more = _mm512_add_ps(_mm512_unpacklo_ps(z, w), _mm512_unpackhi_ps(z, w));
    V all = (V)_mm512_add_ps(_mm512_shuffle_ps(two, more, 0x44), _mm512_shuffle_ps(two, more, 0xee));
    return (QUARTER(all, 0) + QUARTER(all, 2)) + (QUARTER(all, 1) + QUARTER(all, 3));
#elif LANES == 8
    __m256 x = (__m256)a, y = (__m256)b, z = (__m256)c, w = (__m256)d;
    __m256 two = _mm256_add_ps(_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y));
    __m256 more = _mm256_add_ps(_mm256_unpacklo_ps(z, w), _mm256_unpackhi_ps(z, w));
    V all = (V)_mm256_add_ps(_mm256_shuffle_ps(two, more, 0x44), _mm256_shuffle_ps(two, more, 0xee));
    return QUARTER(all, 0) + QUARTER(all, 1);
#else
    V first = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    V second = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    return __builtin_shufflevector(first, second, 0, 1, 4, 5) + __builtin_shufflevector(first, second, 2, 3, 6, 7);
#endif
}

static inline float most_of(V v) {
#if LANES == 16
    V4 four = LARGER(LARGER(QUARTER(v, 0), QUARTER(v, 1)), LARGER(QUARTER(v, 2), QUARTER(v, 3)));
#elif LANES == 8
    V4 four = LARGER(QUARTER(v, 0), QUARTER(v, 1));
#else
    V4 four = v;
#endif
    four = LARGER(four, SWAP2(four));
    four = LARGER(four, SWAP1(four));
    return four[0];
}

#endif
