/* The n best of many scores, ties going to the lower number (SPEC 1.3). */
#ifndef KIV_RANKING_H
#define KIV_RANKING_H

#include "functions.h"

#define BITS 11

/* The bits of a float in an order of whole numbers; both zeros are equal. */
static inline uint32_t order(float score) {
    uint32_t bits;
    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static inline float score_of(uint32_t order) {
    float score;
    order = order & 0x80000000u ? order & 0x7fffffffu : ~order;
    memcpy(&score, &order, sizeof score);
    return score;
}

/* The n-th largest of `count` scores, as `order` has it, and how many that equal it are among the n best: none if there is
   no memory. */
static uint32_t nth(const float *scores, int64_t count, int64_t n, int64_t *ties) {
    uint32_t *left = kiv_workspace(1, count * sizeof(uint32_t) + 1), found = 0;
    int64_t size = count;
    *ties = 0;
    if (!left) return UINT32_MAX;
    for (int64_t i = 0; i < count; i++) left[i] = order(scores[i]);
    for (int shift = 32 - BITS;; shift = shift > BITS ? shift - BITS : 0) {
        int64_t bins[1 << BITS] = {0}, kept = 0;
        uint32_t mask = (1u << BITS) - 1;
        for (int64_t i = 0; i < size; i++) bins[left[i] >> shift & mask]++;
        int64_t bin = mask;
        while (bin && bins[bin] < n) n -= bins[bin--];
        found = (found & ~(mask << shift)) | (uint32_t)bin << shift;
        if (shift == 0) break;
        for (int64_t i = 0; i < size; i++) {
            left[kept] = left[i];
            kept += (left[i] >> shift & mask) == (uint32_t)bin;
        }
        size = kept;
    }
    *ties = n;
    return found;
}

/* Numbers of the n best, ascending: `name` gives them other names than their places. */
static void take_best(const float *scores, const int32_t *name, int64_t count, int64_t n, int32_t *best) {
    int64_t ties, taken = 0;
    if (n == 0) return;
    uint32_t least = nth(scores, count, n, &ties);
    OR_FAIL(ties)
    for (int64_t i = 0; i < count && taken < n; i++) {
        uint32_t key = order(scores[i]);
        int equal = key == least && ties > 0;
        best[taken] = name ? name[i] : (int32_t)i;
        ties -= equal;
        taken += key > least || equal;
    }
}

#endif
