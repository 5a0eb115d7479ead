/* Estimates of cold tokens by their codes (SPEC 4.2), a page at a time. */
#ifndef KIV_SCAN_H
#define KIV_SCAN_H

#include "vectors.h"

#define TOKENS 16 /* whose codes lie together */
#define TOGETHER 4 /* members whose sums are in registers at once */

/* What a page asks of each member: the estimate is `start` plus `unit` times the sum of weight times code. Rows have room
   for whole vectors. */
typedef struct {
    int32_t *high, *low; /* [M][channels / 4], four in a word: weight = 128 * high + low, bytes with a sign */
    float *unit, *start; /* [M] */
    int64_t channels;    /* 2 W, rounded up */
} Asked;

static inline int64_t asked_bytes(const Index *index, int64_t members) {
    return members * (2 * ROUND_UP(2 * index->half, 16) + 2 * (int64_t)sizeof(float));
}

static inline Asked asked_in(void *room, const Index *index, int64_t members) {
    int64_t channels = ROUND_UP(2 * index->half, 16);
    int32_t *high = room, *low = high + members * channels / 4;
    float *unit = (float *)(low + members * channels / 4);
    return (Asked){high, low, unit, unit + members, channels};
}

/* The power of two of which the largest weight is 4,096 to 8,191, and its inverse. */
static void unit_of(float most, float *unit, float *inverse) {
    int32_t exponent;
    memcpy(&exponent, &most, sizeof most);
    exponent = (exponent >> 23) - 126 - 13;
    exponent = exponent < -126 ? -126 : exponent > 115 ? 115 : exponent;
    uint32_t bits = (uint32_t)(127 + exponent) << 23, others = (uint32_t)(127 - exponent) << 23;
    memcpy(unit, &bits, sizeof *unit);
    memcpy(inverse, &others, sizeof *inverse);
}

static void ask(const Index *index, const Query *query, int64_t head, int64_t page, const Asked *asked) {
    int64_t channels = 2 * index->half, width = index->width, at = index->page[page] * index->heads + head;
    const int16_t *channel = index->channels + at * channels;
    const float *step = index->step + at * channels, *base = index->base + at * width;
    const V scale = splat(query->scale), magic = splat(12582912.0f); /* adding 1.5 * 2^23 rounds to a whole number */
    float exact[asked->channels];
    for (int64_t m = 0; m < query->members; m++) {
        const float *q = query->query + (head * query->members + m) * width;
        float start = 0.0f, unit, inverse;
        V sum = splat(0.0f), more = sum, most = sum;
        int64_t d = 0;
        for (; d + 2 * LANES <= width; d += 2 * LANES) {
            sum += (load(q + d) * scale) * load(base + d);
            more += (load(q + d + LANES) * scale) * load(base + d + LANES);
        }
        for (; d + LANES <= width; d += LANES) sum += (load(q + d) * scale) * load(base + d);
        for (; d < width; d++) start += q[d] * query->scale * base[d];
        for (int64_t c = 0; c < channels; c++) exact[c] = q[channel[c]];
        for (int64_t c = 0; c < channels; c += LANES) {
            V one = load_some(exact + c, channels - c, 0.0f) * scale * load_some(step + c, channels - c, 0.0f);
            store(exact + c, one);
            most = larger((V)((VI)one & INT32_MAX), most);
        }
        unit_of(most_of(most), &unit, &inverse);
        int8_t *high = (int8_t *)asked->high + m * asked->channels, *low = (int8_t *)asked->low + m * asked->channels;
        for (int64_t c = 0; c < channels; c += LANES) {
            V one = load(exact + c) * splat(inverse);
            one = larger(smaller(splat(8192.0f), one), splat(-8192.0f));
            VI weight = (VI)(one + magic) - (VI)magic;
            VB up = __builtin_convertvector(weight >> 7, VB), down = __builtin_convertvector(weight & 127, VB);
            memcpy(high + c, &up, sizeof up);
            memcpy(low + c, &down, sizeof down);
        }
        asked->unit[m] = unit;
        asked->start[m] = start + sum_of(sum + more);
    }
}

static inline void put(VI sum, const Asked *asked, int64_t m, float *to) {
    store(to, __builtin_convertvector(sum, V) * splat(asked->unit[m]) + splat(asked->start[m]));
}

/* Ask for what the next page has, before it is needed. */
static void foresee(const Index *index, int64_t head, int64_t page) {
    if (page >= index->pages) return;
    int64_t channels = 2 * index->half, width = index->width, at = index->page[page] * index->heads + head;
    for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(index->base + at * width + i);
    for (int64_t i = 0; i < channels; i += 16) __builtin_prefetch(index->step + at * channels + i);
    for (int64_t i = 0; i < channels; i += 32) __builtin_prefetch(index->channels + at * channels + i);
}

#if defined(__AVX512VNNI__)

/* One or two groups of 16 tokens: with two of them a weight is loaded for both. */
__attribute__((always_inline)) static inline void some_groups(const uint8_t *block, const Index *index, const Asked *asked,
                                                              int64_t m, const int members, const int groups, float *out,
                                                              int64_t stride, int64_t ahead) {
    const int64_t words = index->half / 4, stride_of = asked->channels / 4, group = TOKENS * index->half;
    const __m512i nibble = _mm512_set1_epi8(15);
    const int32_t *high = asked->high + m * stride_of, *low = asked->low + m * stride_of;
    __m512i up[2][TOGETHER], down[2][TOGETHER], first[2], second[2];
#pragma GCC unroll 4
    for (int i = 0; i < members; i++) up[0][i] = down[0][i] = up[1][i] = down[1][i] = _mm512_setzero_si512();
    for (int64_t j = 0; j < words; j++) {
#pragma GCC unroll 2
        for (int g = 0; g < groups; g++) {
            const uint8_t *at = block + g * group + j * 64;
            __m512i both = _mm512_loadu_si512(at);
            _mm_prefetch((const char *)at + ahead, _MM_HINT_T1);
            first[g] = _mm512_and_si512(both, nibble);
            second[g] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
        }
#pragma GCC unroll 4
        for (int i = 0; i < members; i++) {
            const int32_t *h = high + i * stride_of + j, *l = low + i * stride_of + j;
            const __m512i weight[4] = {_mm512_set1_epi32(h[0]), _mm512_set1_epi32(l[0]), _mm512_set1_epi32(h[words]),
                                       _mm512_set1_epi32(l[words])};
#pragma GCC unroll 2
            for (int g = 0; g < groups; g++) {
                up[g][i] = _mm512_dpbusd_epi32(up[g][i], first[g], weight[0]);
                down[g][i] = _mm512_dpbusd_epi32(down[g][i], first[g], weight[1]);
                up[g][i] = _mm512_dpbusd_epi32(up[g][i], second[g], weight[2]);
                down[g][i] = _mm512_dpbusd_epi32(down[g][i], second[g], weight[3]);
            }
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < members; i++)
#pragma GCC unroll 2
        for (int g = 0; g < groups; g++)
            put(((VI)up[g][i] << 7) + (VI)down[g][i], asked, m + i, out + i * stride + g * TOKENS);
}

__attribute__((always_inline)) static inline void some_members(const uint8_t *codes, const Index *index,
                                                               const Asked *asked, int64_t m, const int members,
                                                               float *out, int64_t stride, int64_t from, int64_t to,
                                                               int64_t ahead) {
    int64_t t = from;
    for (; t + TOKENS < to; t += 2 * TOKENS)
        some_groups(codes + t * index->half, index, asked, m, members, 2, out + t - from, stride, ahead);
    if (t < to) some_groups(codes + t * index->half, index, asked, m, members, 1, out + t - from, stride, ahead);
}

#elif defined(__AVX2__)

__attribute__((always_inline)) static inline void some_members(const uint8_t *codes, const Index *index,
                                                               const Asked *asked, int64_t m, const int members,
                                                               float *out, int64_t stride, int64_t from, int64_t to,
                                                               int64_t ahead) {
    const int64_t words = index->half / 4, stride_of = asked->channels / 4, tokens = to;
    const __m256i nibble = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    const int32_t *high = asked->high + m * stride_of, *low = asked->low + m * stride_of;
    for (int64_t t = from; t < tokens; t += 8) {
        const uint8_t *block = codes + t / TOKENS * TOKENS * index->half + t % TOKENS * 4;
        __m256i up[TOGETHER], down[TOGETHER];
        for (int i = 0; i < members; i++) up[i] = down[i] = _mm256_setzero_si256();
        for (int64_t j = 0; j < words; j++) {
            __m256i both = _mm256_loadu_si256((const __m256i *)(block + j * 64));
            _mm_prefetch((const char *)block + j * 64 + ahead, _MM_HINT_T1);
            __m256i first = _mm256_and_si256(both, nibble);
            __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
            for (int i = 0; i < members; i++) {
                const int32_t *h = high + i * stride_of + j, *l = low + i * stride_of + j;
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
            put(sum, asked, m + i, out + i * stride + t - from);
        }
    }
}

#else

static inline void some_members(const uint8_t *codes, const Index *index, const Asked *asked, int64_t m,
                                const int members, float *out, int64_t stride, int64_t from, int64_t to,
                                int64_t ahead) {
    const int64_t words = index->half / 4, tokens = to, channels = asked->channels;
    const int8_t *high = (const int8_t *)asked->high + m * channels, *low = (const int8_t *)asked->low + m * channels;
    int32_t weight[members * channels];
    for (int64_t i = 0; i < members * channels; i++) weight[i] = 128 * high[i] + low[i];
    for (int64_t t = from; t < tokens; t += LANES) {
        VI sum[TOGETHER] = {{0}};
        for (int64_t j = 0; j < words; j++) {
            VI both;
            const uint8_t *at = codes + t / TOKENS * TOKENS * index->half + t % TOKENS * 4 + j * 64;
            memcpy(&both, at, sizeof both);
            __builtin_prefetch(at + ahead, 0, 2);
            for (int byte = 0; byte < 4; byte++) {
                VI first = both >> 8 * byte & 15, second = both >> (8 * byte + 4) & 15;
                for (int i = 0; i < members; i++) {
                    const int32_t *one = weight + i * channels + 4 * j + byte;
                    sum[i] += first * one[0] + second * one[4 * words];
                }
            }
        }
        for (int i = 0; i < members; i++) put(sum[i], asked, m + i, out + i * stride + t - from);
    }
}

#endif

static inline const uint8_t *codes_of(const Index *index, int64_t head, int64_t page) {
    return index->codes + (index->page[page] * index->heads + head) * ROUND_UP(index->tokens, TOKENS) * index->half;
}

/* The estimates of the tokens [from, to) of a page, `from` a multiple of 16, for all members, in rows of out `stride`
   apart that have room for whole groups of 16; minus infinity where a token is not valid, or is none. */
static void scan(const Index *index, int64_t members, int64_t head, int64_t page, const Asked *asked, float *out,
                 int64_t stride, int64_t from, int64_t to) {
    const uint8_t *codes = codes_of(index, head, page);
    /* The same of the next page is asked for: the processor does not foresee more than what lies together. */
    int64_t ahead = page + 1 < index->pages ? codes_of(index, head, page + 1) - codes : 0;
    for (int64_t m = 0; m < members; m += TOGETHER) {
        float *row = out + m * stride;
        switch (members - m < TOGETHER ? members - m : TOGETHER) {
        case 1: some_members(codes, index, asked, m, 1, row, stride, from, to, ahead); break;
        case 2: some_members(codes, index, asked, m, 2, row, stride, from, to, ahead); break;
        case 3: some_members(codes, index, asked, m, 3, row, stride, from, to, ahead); break;
        default: some_members(codes, index, asked, m, 4, row, stride, from, to, ahead);
        }
    }
    if (index->unseen)
        for (int64_t t = from; t < to; t++)
            if (index->unseen[page * index->tokens + t])
                for (int64_t m = 0; m < members; m++) out[m * stride + t - from] = -INFINITY;
    for (int64_t t = to; t < ROUND_UP(to, TOKENS); t++)
        for (int64_t m = 0; m < members; m++) out[m * stride + t - from] = -INFINITY;
}

#endif
