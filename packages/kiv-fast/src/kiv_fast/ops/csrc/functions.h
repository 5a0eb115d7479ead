/* Exponentials, logarithms and the soft cap, many numbers at a time. */
#ifndef KIV_FUNCTIONS_H
#define KIV_FUNCTIONS_H

#include "vectors.h"

/* e^x, within 2 units of the last place and one more for every 8 that x is away from 0; 0 below the normal numbers, of minus
   infinity too, and of what is above 88 that of 88. */
static inline V exponential(V x) {
    V given = x, n, r; /* 2^n and 2^r, r from -1/2 to 1/2 */
    const V log2e = splat(1.44269504f);
    x = larger(smaller(splat(88.0f), x), splat(-87.33f));
#if LANES == 16
    n = (V)_mm512_roundscale_ps((__m512)(x * log2e), 0);
    r = (V)_mm512_fmsub_ps((__m512)x, (__m512)log2e, (__m512)n);
#else
    const V magic = splat(12582912.0f); /* adding 1.5 * 2^23 rounds to an integer, which is in the low bits */
    V shifted = x * log2e + magic;
    n = shifted - magic;
#if LANES == 8
    r = (V)_mm256_fmsub_ps((__m256)x, (__m256)log2e, (__m256)n);
#else
    r = (x - n * splat(0.693359375f) - n * splat(-2.12194440e-4f)) * log2e;
#endif
#endif
    V p = splat(1.32647005e-3f); /* the least relative error, 1e-7, that leaves 2^0 exact */
    p = p * r + splat(9.67153441e-3f);
    p = p * r + splat(5.55073395e-2f);
    p = p * r + splat(2.40222424e-1f);
    p = p * r + splat(6.93147004e-1f);
    p = p * r + splat(1.0f);
#if LANES == 16
    __mmask16 normal = _mm512_cmp_ps_mask((__m512)given, (__m512)splat(-87.33f), _CMP_NLT_UQ);
    return (V)_mm512_maskz_scalef_ps(normal, (__m512)p, (__m512)n);
#else
    VI power = (((VI)shifted - (VI)magic) + 127) << 23;
    return pick(given < splat(-87.33f), splat(0.0f), p * (V)power);
#endif
}

/* log(1 + y) of 0 to 1, within 1e-7. */
static inline V log_one_plus(V y) {
    V s = y / (y + splat(2.0f)), square = s * s; /* 2 artanh s */
    V p = splat(2.0f / 13);
    p = p * square + splat(2.0f / 11);
    p = p * square + splat(2.0f / 9);
    p = p * square + splat(2.0f / 7);
    p = p * square + splat(2.0f / 5);
    p = p * square + splat(2.0f / 3);
    return (p * square + splat(2.0f)) * s;
}

/* log x of a normal number, within 1e-7 or 2 units of the last place; minus infinity of 0. */
static inline V logarithm(V x) {
    VI bits = (VI)x;
    V exponent = __builtin_convertvector((bits >> 23) - 127, V), rest = (V)((bits & 0x7fffff) | 0x3f800000);
    V log = exponent * splat(0.693147182f) + log_one_plus(rest - splat(1.0f));
    return pick(x == splat(0.0f), splat(-INFINITY), log);
}

/* log(e^x + e^y). */
static inline V log_of_both(V x, V y) {
    return larger(x, y) + log_one_plus(exponential((V)((VI)(x - y) | INT32_MIN)));
}

/* tanh, within 2 units of the last place. */
static inline V hyperbolic(V x) {
    V size = (V)((VI)x & 0x7fffffff), e = exponential(smaller(splat(88.0f), size * splat(2.0f)));
    V far = splat(1.0f) - splat(2.0f) / (e + splat(1.0f)), square = x * x;
    V p = splat(-5.70498872745e-3f);
    p = p * square + splat(2.06390887954e-2f);
    p = p * square + splat(-5.37397155531e-2f);
    p = p * square + splat(1.33314422036e-1f);
    p = p * square + splat(-3.33332819422e-1f);
    V near = p * square * x + x;
    far = (V)((VI)far | ((VI)x & INT32_MIN));
    return pick(size < splat(0.625f), near, far);
}

/* A soft cap (SPEC 8.1); minus infinity, which hides a token, stays. */
static inline V capped(V logits, float softcap) {
    return pick(logits == splat(-INFINITY), logits, hyperbolic(logits / splat(softcap)) * splat(softcap));
}

/* The same on n logits in place, where there is one. */
static inline void cap(float *logits, int64_t n, float softcap) {
    if (softcap == 0.0f) return;
    for (int64_t i = 0; i < n; i += LANES) {
        store_some(logits + i, capped(load_some(logits + i, n - i, 0.0f), softcap), n - i);
    }
}

/* The largest of n numbers; minus infinity of none. */
static inline float largest(const float *from, int64_t n) {
    V most = splat(-INFINITY), more = most;
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        most = larger(load(from + i), most);
        more = larger(load(from + i + LANES), more);
    }
    for (most = larger(more, most); i + LANES <= n; i += LANES) most = larger(load(from + i), most);
    float one = most_of(most);
    for (; i < n; i++) one = from[i] > one ? from[i] : one;
    return one;
}

/* Put e^(x - most) in the place of n numbers; returns their sum. */
static inline float exponentials(float *at, int64_t n, float most) {
    V total = splat(0.0f);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        V part = exponential(load(at + i) - splat(most));
        store(at + i, part);
        total += part;
    }
    if (i < n) {
        V part = exponential(load_some(at + i, n - i, -INFINITY) - splat(most));
        store_some(at + i, part, n - i);
        total += part;
    }
    return sum_of(total);
}

/* The logarithm of the sum of exponentials, in whose place they are put. */
static inline double log_sums(float *logits, int64_t n) {
    float most = largest(logits, n), base = most < NONE ? NONE : most, total = exponentials(logits, n, base);
    return most == -INFINITY ? -INFINITY : base + log(total);
}

#endif
