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

/* e^x, within 2 units of the last place and one more for every 8 that x is away from 0; 0 below the normal numbers, of minus
   infinity too. */
static inline V exponential(V x) {
    V given = x, n, r; /* 2^n and 2^r, r from -1/2 to 1/2 */
    const V log2e = splat(1.44269504f);
#if LANES == 16
    x = larger(x, splat(-87.33f));
    n = (V)_mm512_roundscale_ps((__m512)(x * log2e), 0);
    r = (V)_mm512_fmsub_ps((__m512)x, (__m512)log2e, (__m512)n);
#else
    const V magic = splat(12582912.0f); /* adding 1.5 * 2^23 rounds to an integer, which is in the low bits */
    x = larger(smaller(splat(88.0f), x), splat(-87.33f));
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

static inline float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023, bits;
    float number;
    if (exponent == 0) { /* zeros and denormal numbers: exact in float32 */
        number = (float)fraction * 0x1p-24f;
        return sign ? -number : number;
    }
    bits = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | fraction << 13;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* A vector of stored numbers from the i-th on, as floats. */
static inline V several(const void *from, int64_t i, int64_t kind) {
    VH narrow;
    V all;
    if (kind == F32) return load((const float *)from + i);
    memcpy(&narrow, (const uint16_t *)from + i, sizeof narrow);
    if (kind == BF16) return upper_halves(narrow);
#ifdef __F16C__
    typedef short S8 __attribute__((vector_size(16)));
    typedef float V8 __attribute__((vector_size(32)));
    S8 part[LANES / 8];
    V8 wide[LANES / 8];
    memcpy(part, &narrow, sizeof narrow);
    for (int h = 0; h < LANES / 8; h++) wide[h] = (V8)__builtin_ia32_vcvtph2ps256(part[h]);
    memcpy(&all, wide, sizeof all);
#else
    for (int lane = 0; lane < LANES; lane++) all[lane] = half_to_float(narrow[lane]);
#endif
    return all;
}

/* A row of n numbers as floats, filled up with zeros to whole vectors. */
static inline void widen(const void *from, int64_t n, int64_t kind, float *to) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, several(from, i, kind));
    if (i < n) {
        uint8_t rest[64] = {0};
        int size = kind == F32 ? 4 : 2;
        memcpy(rest, (const uint8_t *)from + i * size, (n - i) * size);
        store(to + i, several(rest, 0, kind));
    }
}

/* A float as it is stored, rounded to nearest. */
static inline void narrow(float number, int64_t kind, void *to, int64_t i) {
    if (kind == F32) {
        ((float *)to)[i] = number;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    uint16_t *half = (uint16_t *)to + i;
    if (kind == BF16) {
        *half = size > 0x7f800000 ? 0x7fc0 | sign : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    } else if (size >= 0x47800000) { /* at least 65536, or not a number */
        *half = sign | (size > 0x7f800000 ? 0x7e00 : 0x7c00);
    } else if (size < 0x38800000) { /* denormal: units of 2^-24 */
        float scaled;
        memcpy(&scaled, &size, sizeof scaled);
        *half = sign | (uint16_t)rintf(scaled * 0x1p24f);
    } else {
        *half = sign | (uint16_t)((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
    }
}

/* Ask for rows that lie anywhere before they are needed: the processor foresees those that lie together, and no others. */
#define ROWS_AHEAD 32

static inline const void *row_of(const Rows *rows, int64_t head, int64_t i);

static inline void ask_row(const Rows *rows, int64_t head, int64_t i) {
    const char *row = row_of(rows, head, i);
    int64_t nbytes = rows->width * (rows->kind == F32 ? 4 : 2);
    for (int64_t byte = 0; byte < nbytes; byte += 64) __builtin_prefetch(row + byte);
}

/* Where n rows from the first on are, in whose place that one stands from the `have`-th on. Rows of a page lie together,
   which saves divisions. */
static inline void rows_from(const Rows *rows, int64_t head, int64_t first, int64_t have, int64_t n, const void **row) {
    int64_t nbytes = rows->width * (rows->kind == F32 ? 4 : 2);
    const char *at = row_of(rows, head, first);
    int together = !rows->page || first % rows->tokens + have <= rows->tokens;
    for (int64_t j = 0; j < n; j++) row[j] = j >= have ? at : together ? at + j * nbytes : row_of(rows, head, first + j);
}

static inline const void *row_of(const Rows *rows, int64_t head, int64_t i) {
    int64_t at = rows->page ? ((rows->page[i / rows->tokens] * rows->heads + head) * rows->tokens + i % rows->tokens) *
                                  rows->width
                            : head * rows->head + i * rows->width;
    return (const uint8_t *)rows->data + at * (rows->kind == F32 ? 4 : 2);
}

#endif
