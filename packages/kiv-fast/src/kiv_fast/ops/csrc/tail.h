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

/* Logits of the pages of one member: of estimates, but for candidates, whose keys were read. */
static void tail_of_member(void *context, int64_t row) {
    const Tail *work = context;
    const Estimates *estimates = work->estimates;
    const Found *found = work->found;
    int64_t members = work->query->members, head = row / members, pages = work->index->pages, tokens = work->index->tokens;
    int64_t start = estimates->start[head], count = estimates->count[head], candidates = 0, k = 0, i = 0, j = 0;
    const int32_t *at = found->at + head * found->stride, *chosen = found->chosen + head * found->selected;
    const int32_t *name = estimates->name + start;
    const float *listed = estimates->listed + start * members + row % members;
    while (candidates < found->candidates && at[candidates] >= 0) candidates++;
    float *weight = kiv_workspace(2, ROUND_UP(candidates + 1, LANES) * sizeof(float));
    OR_FAIL(weight)
    memcpy(weight, found->raw + row * found->stride, candidates * sizeof(float));
    cap(weight, candidates, work->query->softcap);
    float most = largest(weight, candidates);
    if (most < NONE) most = NONE;
    exponentials(weight, candidates, most);
    for (int64_t page = 0; page < pages; page++) {
        float rest = estimates->sum[row * pages + page], read = 0.0f;
        for (; j < count && name[j] < (page + 1) * tokens; j++) {
            if (k == candidates || at[k] != name[j]) {
                rest += listed[j * members];
                continue;
            }
            if (i < found->selected && chosen[i] == k) i++;
            else read += weight[k];
            k++;
        }
        work->out[row * pages + page] = log_sum(estimates->base[row * pages + page], rest, most, read);
    }
}

static int tail(const Index *index, const Query *query, const Estimates *estimates, const Found *found, float *out) {
    Tail work = {index, query, estimates, found, out};
    return kiv_run(tail_of_member, &work, query->heads * query->members, query->threads);
}

#endif
