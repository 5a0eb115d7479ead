/* Estimates of cold tokens by their codes (SPEC 4.2), a page at a time. */
#ifndef KIV_SCAN_H
#define KIV_SCAN_H

#include "vectors.h"

#ifdef __AVX512VNNI__
#include <immintrin.h>
#elif defined(__AVX2__)
#include <immintrin.h>
#endif

#define AHEAD 4096 /* bytes that are asked for before they are needed */
#define TOKENS 16 /* whose codes lie together */
#define TOGETHER 4 /* members whose sums are in registers at once */

/* What a page asks of each member: the estimate is `start` plus `unit` times the sum of weight times code. */
typedef struct {
    int32_t *weight;    /* [M][2 W], as whole numbers */
    int32_t *high, *low; /* [M][2 W / 4], four channels in a word: weight = 128 * high + low, bytes with a sign */
    float *unit, *start; /* [M] */
} Asked;

static inline Asked asked_room(const Index *index, int64_t members) {
    int64_t channels = 2 * index->half;
    int32_t *room = kiv_workspace(0, members * (channels + channels / 2 + 2) * 4);
    if (!room) return (Asked){0};
    Asked asked = {room, room + members * channels, room + members * (channels + channels / 4), 0, 0};
    asked.unit = (float *)(asked.low + members * channels / 4);
    asked.start = asked.unit + members;
    return asked;
}

static void ask(const Index *index, const Query *query, int64_t head, int64_t page, const Asked *asked) {
    int64_t channels = 2 * index->half, width = index->width, at = index->page[page] * index->heads + head;
    const int16_t *channel = index->channels + at * channels;
    const float *step = index->step + at * channels, *base = index->base + at * width;
    for (int64_t m = 0; m < query->members; m++) {
        const float *q = query->query + (head * query->members + m) * width;
        float scale = query->scale, most, start = 0.0f;
        float exact[channels], picked[channels];
        int32_t *weight = asked->weight + m * channels;
        V sum = splat(0.0f);
        int64_t d = 0;
        for (; d + LANES <= width; d += LANES) sum += (load(q + d) * splat(scale)) * load(base + d);
        for (; d < width; d++) start += q[d] * scale * base[d];
        for (int64_t c = 0; c < channels; c++) picked[c] = q[channel[c]];
        for (int64_t c = 0; c < channels; c++) exact[c] = picked[c] * scale * step[c];
        for (int64_t c = 0; c < channels; c++) picked[c] = fabsf(exact[c]);
        most = largest(picked, channels);
        /* The unit is the power of two of which the largest weight is 4,096 to 8,191. */
        int exponent = 0;
        frexpf(most, &exponent);
        float unit = ldexpf(1.0f, exponent - 13 > -126 ? (exponent - 13 < 115 ? exponent - 13 : 115) : -126);
        float inverse = 1.0f / unit;
        for (int64_t c = 0; c < channels; c++) {
            float rounded = rintf(exact[c] * inverse);
            weight[c] = rounded > 8192.0f ? 8192 : rounded > -8192.0f ? (int32_t)rounded : -8192;
        }
        int8_t *high = (int8_t *)(asked->high + m * channels / 4), *low = (int8_t *)(asked->low + m * channels / 4);
        for (int64_t c = 0; c < channels; c++) {
            high[c] = (int8_t)(weight[c] >> 7);
            low[c] = (int8_t)(weight[c] & 127);
        }
        asked->unit[m] = unit;
        asked->start[m] = start + sum_of(sum);
    }
}

static inline void put(VI sum, const Asked *asked, int64_t m, int64_t some, float *to) {
    store_some(to, __builtin_convertvector(sum, V) * splat(asked->unit[m]) + splat(asked->start[m]), some);
}

#if defined(__AVX512VNNI__)

__attribute__((always_inline)) static inline void some_members(const uint8_t *codes, const Index *index,
                                                               const Asked *asked, int64_t m, const int members,
                                                               float *out, int64_t stride, int64_t from, int64_t to) {
    const int64_t words = index->half / 4, tokens = to;
    const __m512i nibble = _mm512_set1_epi8(15);
    const int32_t *high = asked->high + m * 2 * words, *low = asked->low + m * 2 * words;
    for (int64_t t = from; t < tokens; t += 2 * LANES) {
        const uint8_t *block = codes + t * index->half;
        const uint8_t *next = t + LANES < tokens ? block + LANES * index->half : block;
        __m512i up[TOGETHER], down[TOGETHER], up2[TOGETHER], down2[TOGETHER];
#pragma GCC unroll 4
        for (int i = 0; i < members; i++) up[i] = down[i] = up2[i] = down2[i] = _mm512_setzero_si512();
        for (int64_t j = 0; j < words; j++) {
            __m512i both = _mm512_loadu_si512(block + j * 64), both2 = _mm512_loadu_si512(next + j * 64);
            _mm_prefetch((const char *)block + j * 64 + AHEAD, _MM_HINT_T0);
            _mm_prefetch((const char *)next + j * 64 + AHEAD, _MM_HINT_T0);
            __m512i first = _mm512_and_si512(both, nibble), first2 = _mm512_and_si512(both2, nibble);
            __m512i second = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
            __m512i second2 = _mm512_and_si512(_mm512_srli_epi16(both2, 4), nibble);
#pragma GCC unroll 4
            for (int i = 0; i < members; i++) {
                const int32_t *h = high + i * 2 * words + j, *l = low + i * 2 * words + j;
                __m512i weight = _mm512_set1_epi32(h[0]);
                up[i] = _mm512_dpbusd_epi32(up[i], first, weight);
                up2[i] = _mm512_dpbusd_epi32(up2[i], first2, weight);
                weight = _mm512_set1_epi32(l[0]);
                down[i] = _mm512_dpbusd_epi32(down[i], first, weight);
                down2[i] = _mm512_dpbusd_epi32(down2[i], first2, weight);
                weight = _mm512_set1_epi32(h[words]);
                up[i] = _mm512_dpbusd_epi32(up[i], second, weight);
                up2[i] = _mm512_dpbusd_epi32(up2[i], second2, weight);
                weight = _mm512_set1_epi32(l[words]);
                down[i] = _mm512_dpbusd_epi32(down[i], second, weight);
                down2[i] = _mm512_dpbusd_epi32(down2[i], second2, weight);
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < members; i++) {
            put(((VI)up[i] << 7) + (VI)down[i], asked, m + i, tokens - t, out + i * stride + t - from);
            if (t + LANES < tokens)
                put(((VI)up2[i] << 7) + (VI)down2[i], asked, m + i, tokens - t - LANES,
                    out + i * stride + t + LANES - from);
        }
    }
}

#elif defined(__AVX2__)

__attribute__((always_inline)) static inline void some_members(const uint8_t *codes, const Index *index,
                                                               const Asked *asked, int64_t m, const int members,
                                                               float *out, int64_t stride, int64_t from, int64_t to) {
    const int64_t words = index->half / 4, tokens = to;
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const int32_t *high = asked->high + m * 2 * words, *low = asked->low + m * 2 * words;
    for (int64_t t = from; t < tokens; t += 8) {
        const uint8_t *block = codes + t / TOKENS * TOKENS * index->half + t % TOKENS * 4;
        __m256i up[TOGETHER], down[TOGETHER];
        for (int i = 0; i < members; i++) up[i] = down[i] = _mm256_setzero_si256();
        for (int64_t j = 0; j < words; j++) {
            __m256i both = _mm256_loadu_si256((const __m256i *)(block + j * 64));
            __m256i first = _mm256_and_si256(both, nibble);
            __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
            for (int i = 0; i < members; i++) {
                const int32_t *h = high + i * 2 * words + j, *l = low + i * 2 * words + j;
                /* Four products of at most 15 * 127 fit into 16 bits. */
                __m256i a = _mm256_add_epi16(_mm256_maddubs_epi16(first, _mm256_set1_epi32(h[0])),
                                             _mm256_maddubs_epi16(second, _mm256_set1_epi32(h[words])));
                __m256i b = _mm256_add_epi16(_mm256_maddubs_epi16(first, _mm256_set1_epi32(l[0])),
                                             _mm256_maddubs_epi16(second, _mm256_set1_epi32(l[words])));
                up[i] = _mm256_add_epi32(up[i], _mm256_madd_epi16(a, ones));
                down[i] = _mm256_add_epi32(down[i], _mm256_madd_epi16(b, ones));
            }
        }
        for (int i = 0; i < members; i++) {
            VI sum = (VI)_mm256_add_epi32(_mm256_slli_epi32(up[i], 7), down[i]);
            put(sum, asked, m + i, tokens - t, out + i * stride + t - from);
        }
    }
}

#else

static inline void some_members(const uint8_t *codes, const Index *index, const Asked *asked, int64_t m,
                                const int members, float *out, int64_t stride, int64_t from, int64_t to) {
    const int64_t words = index->half / 4, tokens = to;
    for (int64_t t = from; t < tokens; t += LANES) {
        VI sum[TOGETHER] = {{0}};
        for (int64_t j = 0; j < words; j++) {
            VI both;
            memcpy(&both, codes + t / TOKENS * TOKENS * index->half + t % TOKENS * 4 + j * 64, sizeof both);
            for (int byte = 0; byte < 4; byte++) {
                VI first = both >> 8 * byte & 15, second = both >> (8 * byte + 4) & 15;
                for (int i = 0; i < members; i++) {
                    const int32_t *weight = asked->weight + (m + i) * 8 * words + 4 * j + byte;
                    sum[i] += first * weight[0] + second * weight[4 * words];
                }
            }
        }
        for (int i = 0; i < members; i++) put(sum[i], asked, m + i, tokens - t, out + i * stride + t - from);
    }
}

#endif

/* The estimates of the tokens [from, to) of a page, `from` a multiple of 16, for all members, in rows of out `stride`
   apart; minus infinity where a token is not valid. */
static void scan(const Index *index, int64_t members, int64_t head, int64_t page, const Asked *asked, float *out,
                 int64_t stride, int64_t from, int64_t to) {
    const uint8_t *codes = index->codes +
                           (index->page[page] * index->heads + head) * ROUND_UP(index->tokens, TOKENS) * index->half;
    for (int64_t m = 0; m < members; m += TOGETHER) {
        float *row = out + m * stride;
        switch (members - m < TOGETHER ? members - m : TOGETHER) {
        case 1: some_members(codes, index, asked, m, 1, row, stride, from, to); break;
        case 2: some_members(codes, index, asked, m, 2, row, stride, from, to); break;
        case 3: some_members(codes, index, asked, m, 3, row, stride, from, to); break;
        default: some_members(codes, index, asked, m, 4, row, stride, from, to);
        }
    }
    if (index->unseen)
        for (int64_t t = from; t < to; t++)
            if (index->unseen[page * index->tokens + t])
                for (int64_t m = 0; m < members; m++) out[m * stride + t - from] = -INFINITY;
}

#endif
