/* What the tokens weigh that are not selected, by page (SPEC 5.2). */
#ifndef KIV_TAIL_H
#define KIV_TAIL_H

#include "select.h"

typedef struct {
    const Index *index;
    const Query *query;
    const Estimates *estimates;
    const Found *found;
    float *out; /* [H][M][pages] */
} Tail;

/* The logarithm of the sum of two numbers, each given by a logarithm and a factor. */
static inline float log_sum(float base, float factor, float other, float its_factor) {
    if (factor == 0.0f || base == -INFINITY) return its_factor == 0.0f ? -INFINITY : other + logf(its_factor);
    if (its_factor == 0.0f) return base + logf(factor);
    float most = base > other ? base : other;
    return most + logf(factor * expf(base - most) + its_factor * expf(other - most));
}

/* The sum of the numbers [from, to), of those whose mask has all bits. */
static float sum_where(const float *numbers, const uint32_t *mask, int64_t from, int64_t to) {
    V sum = splat(0.0f);
    int64_t i = from;
    for (; i + LANES <= to; i += LANES) {
        V one = load(numbers + i);
        sum += mask ? (V)((VI)one & (VI)load((const float *)mask + i)) : one;
    }
    float all = sum_of(sum);
    for (; i < to; i++) all += mask && !mask[i] ? 0.0f : numbers[i];
    return all;
}

/* Logits of the pages of one head: of estimates, but for candidates, whose keys were read. */
static void tail_of_head(void *context, int64_t head) {
    const Tail *work = context;
    const Estimates *estimates = work->estimates;
    const Found *found = work->found;
    int64_t members = work->query->members, pages = work->index->pages, tokens = work->index->tokens, candidates = 0;
    int64_t start = estimates->start[head], count = estimates->count[head], j = 0, k = 0;
    const int32_t *at = found->at + head * found->stride, *chosen = found->chosen + head * found->selected;
    const int32_t *name = estimates->name + start;
    while (candidates < found->candidates && at[candidates] >= 0) candidates++;
    int every = candidates <= found->selected && (candidates == 0 || chosen[candidates - 1] >= 0); /* are selected */
    int64_t left = every ? 0 : candidates;
    float *weight = kiv_workspace(2, (members * left + count) * sizeof(float)), most[members];
    uint32_t *others = (uint32_t *)(weight + members * left);
    OR_FAIL(weight)
    if (candidates == 0) memset(others, 0xff, count * sizeof *others);
    for (int64_t i = 0; i < count && candidates; i++) { /* without a branch, which would not be foreseen */
        uint32_t same = name[i] == at[k < candidates ? k : 0];
        others[i] = same - 1;
        k += same;
    }
    for (int64_t m = 0; m < members; m++) {
        float *row = weight + m * left;
        memcpy(row, found->raw + (head * members + m) * found->stride, left * sizeof(float));
        cap(row, left, work->query->softcap);
        most[m] = largest(row, left);
        if (most[m] < NONE) most[m] = NONE;
        exponentials(row, left, most[m]);
        for (int64_t i = 0; left && i < found->selected && chosen[i] >= 0; i++) row[chosen[i]] = 0.0f;
    }
    k = 0;
    for (int64_t page = 0; page < pages; page++) {
        int64_t stop = j, last = k, end = (page + 1) * tokens;
        while (stop < count && name[stop] < end) stop++;
        while (last < left && at[last] < end) last++;
        for (int64_t m = 0; m < members; m++) {
            int64_t row = (head * members + m) * pages + page;
            const float *listed = estimates->listed + start * members + m * count;
            float rest = estimates->sum[row] + sum_where(listed, others, j, stop);
            float read = sum_where(weight + m * left, 0, k, last);
            work->out[row] = log_sum(estimates->base[row], rest, most[m], read);
        }
        j = stop;
        k = last;
    }
}

static int tail(const Index *index, const Query *query, const Estimates *estimates, const Found *found, float *out) {
    Tail work = {index, query, estimates, found, out};
    return kiv_run(tail_of_head, &work, query->heads, query->threads);
}

#endif
