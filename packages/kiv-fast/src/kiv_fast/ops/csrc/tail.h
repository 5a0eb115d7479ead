/* What the tokens weigh that are not selected, by page (SPEC 5.2). */
#ifndef KIV_TAIL_H
#define KIV_TAIL_H

#include "select.h"

#define FAR 60.0f /* e^-60 is still a number, and what is as much smaller than it is nothing beside it */

typedef struct {
    const Index *index;
    const Query *query;
    const Estimates *estimates;
    const Found *found;
    float *out; /* [H][M][pages] */
} Tail;

/* Tokens of a page that are valid. */
static int64_t valid_tokens(const Index *index, int64_t page) {
    int64_t count = index->tokens;
    for (int64_t i = 0; index->unseen && i < index->tokens; i++) count -= index->unseen[page * index->tokens + i] != 0;
    return count;
}

/* The logarithm of what a page's tokens weigh by estimates made again; candidates, which are [first, last), do not count. */
static float weighed_anew(const Tail *work, int64_t head, int64_t m, int64_t page, int64_t first, int64_t last) {
    const Index *index = work->index;
    int64_t members = work->query->members, wide = ROUND_UP(index->tokens, TOKENS);
    const int32_t *at = work->found->at + head * work->found->stride;
    float *room = kiv_workspace(1, members * wide * sizeof(float)), *row = room + m * wide;
    void *its = kiv_workspace(0, asked_bytes(index, members));
    if (!room || !its) {
        kiv_no_memory();
        return 0.0f;
    }
    Asked asked = asked_in(its, index, members);
    ask(index, work->query, head, page, &asked);
    scan(index, members, head, page, &asked, room, wide, 0, index->tokens);
    for (int64_t k = first; k < last; k++) row[at[k] - page * index->tokens] = -INFINITY;
    cap(row, index->tokens, work->query->softcap);
    return (float)log_sums(row, index->tokens);
}

/* The logarithms of the sums of two numbers, each given by a logarithm and a factor. */
static inline V log_sums_of(V base, V factor, V other, V its_factor) {
    base = pick(factor > splat(0.0f), base, splat(NONE)); /* of nothing a large one would hide the other */
    other = pick(its_factor > splat(0.0f), other, splat(NONE));
    V most = larger(base, other), sum = factor * exponential(base - most) + its_factor * exponential(other - most);
    return pick(sum > splat(0.0f), most + logarithm(sum), splat(-INFINITY));
}

/* Where the tokens of each page begin among ascending ones; the last is their count. */
static void find_pages(const int32_t *token, int64_t count, int64_t tokens, int64_t pages, int64_t *first) {
    int64_t i = 0;
    for (int64_t page = 0; page < pages; page++) {
        first[page] = i;
        while (i < count && token[i] < (page + 1) * tokens) i++;
    }
    first[pages] = count;
}

/* The sum of the numbers [from, to); more are read than are added. */
static inline float sum_some(const float *numbers, int64_t from, int64_t to) {
    V sum = splat(0.0f);
    VI lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    for (int64_t i = from; i < to; i += LANES) sum += (V)((VI)load(numbers + i) & (lane < (int32_t)(to - i)));
    return sum_of(sum);
}

/* Weights of the candidates that are not selected, relative to the largest logit, which is returned. */
static float weigh_read(const Tail *work, int64_t head, int64_t m, int64_t candidates, float *weight) {
    const Found *found = work->found;
    const int32_t *chosen = found->chosen + head * found->selected;
    memcpy(weight, found->raw + (head * work->query->members + m) * found->stride, candidates * sizeof(float));
    cap(weight, candidates, work->query->softcap);
    float most = largest(weight, candidates);
    if (most < NONE) most = NONE;
    exponentials(weight, candidates, most);
    for (int64_t i = 0; candidates && i < found->selected && chosen[i] >= 0; i++) weight[chosen[i]] = 0.0f;
    return most;
}

/* Logits of the pages of one head: of estimates, but for candidates, whose keys were read. */
static void tail_of_head(void *context, int64_t head) {
    const Tail *work = context;
    const Estimates *estimates = work->estimates;
    const Found *found = work->found;
    const Query *query = work->query;
    int64_t members = query->members, pages = work->index->pages, tokens = work->index->tokens, candidates = 0;
    int64_t count = estimates->count[head], room = listed_room(count), k = 0;
    const int32_t *at = found->at + head * found->stride, *name = estimates->name + estimates->start[head];
    const int32_t *chosen = found->chosen + head * found->selected;
    while (candidates < found->candidates && at[candidates] >= 0) candidates++;
    int every = candidates <= found->selected && (candidates == 0 || chosen[candidates - 1] >= 0); /* are selected */
    int64_t left = every ? 0 : candidates, chosen_so_far = 0;
    int64_t floats = left + 3 * ROUND_UP(pages, 2) + room + LANES;
    float *weight = kiv_workspace(2, floats * sizeof(float) + 2 * (pages + 1) * sizeof(int64_t));
    OR_FAIL(weight)
    float *read = weight + ROUND_UP(left, 2), *base = read + ROUND_UP(pages, 2);
    int32_t *unselected = (int32_t *)(base + ROUND_UP(pages, 2)), *others = unselected + ROUND_UP(pages, 2);
    int64_t *first = (int64_t *)(others + room), *its_first = first + pages + 1;
    for (int64_t i = 0; i < count; i++) { /* without a branch, which would not be foreseen */
        int same = candidates && name[i] == at[k < candidates ? k : 0];
        others[i] = same - 1;
        k += same;
    }
    find_pages(name, count, tokens, pages, first);
    find_pages(at, candidates, tokens, pages, its_first);
    for (int64_t page = 0; page < pages; page++) {
        int64_t before = chosen_so_far, stop = its_first[page + 1];
        while (chosen_so_far < found->selected && chosen[chosen_so_far] >= 0 && chosen[chosen_so_far] < stop) chosen_so_far++;
        unselected[page] = (int32_t)(stop - its_first[page] - (chosen_so_far - before));
    }
    for (int64_t m = 0; m < members; m++) {
        int64_t row = (head * members + m) * pages;
        const float *sum = estimates->sum + row, *listed = listed_row(estimates, members, head, m);
        float *out = work->out + row, its = weigh_read(work, head, m, left, weight);
        memcpy(base, estimates->most + row, pages * sizeof(float));
        cap(base, pages, query->softcap);
        for (int64_t page = 0; page < pages; page++) {
            out[page] = sum[page] + sum_listed(listed, others, first[page], first[page + 1], base[page], query->softcap);
            read[page] = every ? 0.0f : sum_some(weight, its_first[page], its_first[page + 1]);
            /* So far below the page's best token, a candidate, weights that are not nothing may have been taken for 0. */
            if (out[page] < expf(-FAR) && valid_tokens(work->index, page) > its_first[page + 1] - its_first[page]) {
                base[page] = weighed_anew(work, head, m, page, its_first[page], its_first[page + 1]);
                out[page] = 1.0f;
            }
        }
        for (int64_t page = 0; page < pages; page += LANES) {
            int64_t some = pages - page;
            V all = log_sums_of(load_some(base + page, some, -INFINITY), load_some(out + page, some, 0.0f), splat(its),
                                load_some(read + page, some, 0.0f));
            /* A candidate that weighs nothing beside another page's is still there: its page's mean value may be infinite. */
            VI there = (VI)load_some((float *)unselected + page, some, 0.0f) > 0;
            store_some(out + page, pick(there, larger(all, splat(NONE)), all), some);
        }
    }
}

static int tail(const Index *index, const Query *query, const Estimates *estimates, const Found *found, float *out) {
    Tail work = {index, query, estimates, found, out};
    return kiv_run(tail_of_head, &work, query->heads, query->threads);
}

#endif
