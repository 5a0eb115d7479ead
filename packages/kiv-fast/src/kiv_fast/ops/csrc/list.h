/* The pass over all codes: what is good enough is listed, and the others are summed up by page (SPEC 4.2, 4.3, 5.2). */
#ifndef KIV_LIST_H
#define KIV_LIST_H

#include <stdlib.h>

#include "look.h"

/* A page in work. Rows of `stride` have room for whole vectors. */
typedef struct {
    float *estimate; /* [M][stride] */
    float *base;     /* [M], the largest logit, which weights are relative to */
    float *factor;   /* [M], of weights in group scores */
    V *sum;          /* [M], weights of what is not listed */
    V *weight;       /* [M], of the tokens in work */
    uint32_t *good;  /* of each vector a bit for each token that is listed */
    int64_t stride;
} Page;

static int page_room(const Index *index, int64_t members, Page *page) {
    int64_t stride = ROUND_UP(index->tokens, TOKENS) + TOKENS; /* not a power of two: rows would share lines of the cache */
    V *room = kiv_workspace(2, members * (2 * sizeof(V) + (stride + 2) * sizeof(float)) + stride * sizeof(uint32_t));
    if (!room) return 0;
    float *floats = (float *)(room + 2 * members);
    *page = (Page){floats, floats + members * stride, floats + members * (stride + 1), room, room + members, 0, stride};
    page->good = (uint32_t *)(page->factor + members);
    return 1;
}

/* Mark what is good enough, and sum up the weights of the rest. For group scores weights are those of the sums times a
   factor, if not `apart`. */
__attribute__((always_inline)) static inline void weigh_members(const Query *query, const Page *page, const float *top,
                                                                float floor, int64_t tokens, V *weight, V *sum,
                                                                const int64_t members, const int apart,
                                                                const int group_max) {
    for (int64_t t = 0; t < tokens; t += LANES) {
        V group = splat(group_max ? -INFINITY : 0.0f);
#pragma GCC unroll 4
        for (int64_t m = 0; m < members; m++) {
            V one = load(page->estimate + m * page->stride + t), logit = one;
            if (apart && query->softcap != 0.0f) logit = capped(one, query->softcap);
            weight[m] = exponential(logit - splat(page->base[m]));
            if (group_max) group = larger(one, group);
            else if (apart) group += exponential(one - splat(top[m]));
            else group += weight[m] * splat(page->factor[m]);
        }
        VI less = group < splat(floor);
        page->good[t / LANES] = bits_of(~less); /* what is not a number too */
#pragma GCC unroll 4
        for (int64_t m = 0; m < members; m++) sum[m] += (V)((VI)weight[m] & less);
    }
}

/* The same of a few members, whose weights and sums are in registers. */
__attribute__((always_inline)) static inline void weigh_few(const Query *query, const Page *page, float floor, int64_t tokens,
                                                            const int64_t members) {
    V weight[TOGETHER], sum[TOGETHER] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
    weigh_members(query, page, 0, floor, tokens, weight, sum, members, 0, 0);
    memcpy(page->sum, sum, members * sizeof(V));
}

static void weigh_page(const Query *query, const Page *page, const float *top, float floor, int64_t tokens) {
    int64_t members = query->members;
    V *weight = page->weight, *sum = page->sum;
    if (query->group_max) weigh_members(query, page, top, floor, tokens, weight, sum, members, 1, 1);
    else if (query->softcap != 0.0f) weigh_members(query, page, top, floor, tokens, weight, sum, members, 1, 0);
    else if (members == 1) weigh_few(query, page, floor, tokens, 1);
    else if (members == 2) weigh_few(query, page, floor, tokens, 2);
    else if (members == 3) weigh_few(query, page, floor, tokens, 3);
    else if (members == 4) weigh_few(query, page, floor, tokens, 4);
    else weigh_members(query, page, top, floor, tokens, weight, sum, members, 0, 0);
}

static inline void mark_all(const Page *page, int64_t tokens) {
    for (int64_t i = 0; i < (tokens + LANES - 1) / LANES; i++) page->good[i] = (1u << LANES) - 1;
}

/* Bits of tokens that are none are cleared; the others are counted. */
static int64_t count_good(const Index *index, int64_t number, uint32_t *good) {
    int64_t count = 0, tokens = index->tokens, last = tokens / LANES;
    const uint8_t *unseen = index->unseen ? index->unseen + number * tokens : 0;
    if (tokens % LANES) good[last] &= (1u << tokens % LANES) - 1;
    for (int64_t i = 0; i < (tokens + LANES - 1) / LANES; i++) {
        for (uint32_t bits = unseen ? good[i] : 0; bits; bits &= bits - 1)
            if (unseen[i * LANES + __builtin_ctz(bits)]) good[i] &= ~(bits & -bits);
        count += __builtin_popcount(good[i]);
    }
    return count;
}

/* Room for so many more words, and a vector. */
static int make_room(List *list, int64_t more) {
    if (list->words + more + LANES <= list->room) return 1;
    int64_t room = 2 * (list->words + more) + LANES;
    uint32_t *word = realloc(list->word, room * sizeof(uint32_t));
    if (!word) return 0;
    list->word = word;
    list->room = room;
    return 1;
}

/* Put names and estimates of a page's marked tokens behind what is listed. */
static int add_page(const Index *index, int64_t members, int64_t number, const Page *page, List *list, int32_t *listed) {
    int64_t vectors = (index->tokens + LANES - 1) / LANES, hits = 0, hit[vectors + 1];
    VI name, lane;
    *listed = (int32_t)count_good(index, number, page->good);
    if (!make_room(list, *listed * (1 + members))) return 0;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    for (int64_t i = 0; i < vectors; i++) { /* without a branch, which would not be foreseen */
        hit[hits] = i;
        hits += page->good[i] != 0;
    }
    float *to = (float *)list->word + list->words;
    for (int64_t i = 0; i < hits; i++) {
        name = lane + (int32_t)(number * index->tokens + hit[i] * LANES);
        to += compress((V)name, page->good[hit[i]], to);
    }
    for (int64_t m = 0; m < members; m++) {
        const float *row = page->estimate + m * page->stride;
        for (int64_t i = 0; i < hits; i++) to += compress(load(row + hit[i] * LANES), page->good[hit[i]], to);
    }
    list->words += *listed * (1 + members);
    return 1;
}

/* What weights of a page are relative to, and how they count in group scores. */
static void begin_page(const Scan *work, int64_t head, int64_t number, const Page *page) {
    const Query *query = work->query;
    for (int64_t m = 0; m < query->members; m++) {
        int64_t row = head * query->members + m;
        float most = largest(page->estimate + m * page->stride, ROUND_UP(work->index->tokens, TOKENS));
        work->estimates->most[row * work->index->pages + number] = page->base[m] = most;
        cap(page->base + m, 1, query->softcap);
        if (page->base[m] < NONE) page->base[m] = NONE;
        float more = page->base[m] - work->top[row];
        page->factor[m] = expf(more > 88.0f ? 88.0f : more);
        page->sum[m] = splat(0.0f);
    }
}

static void list_pages(void *context, int64_t task) {
    const Scan *work = context;
    const Index *index = work->index;
    const Query *query = work->query;
    int64_t head = task / work->parts, first = task % work->parts * PAGES_AT_ONCE, members = query->members;
    const float *top = work->top + head * members, floor = work->floor[head];
    Page page;
    OR_FAIL(page_room(index, members, &page))
    if (!work->lacks[head]) return;
    for (int64_t number = first; number < first + PAGES_AT_ONCE && number < index->pages; number++) {
        int64_t row = head * members * index->pages + number;
        Asked asked = asked_of(work, head, number, 1);
        OR_FAIL(asked.high)
        scan(index, members, head, number, &asked, page.estimate, page.stride, 0, index->tokens);
        begin_page(work, head, number, &page);
        if (floor == -INFINITY) mark_all(&page, index->tokens);
        else weigh_page(query, &page, top, floor, index->tokens);
        for (int64_t m = 0; m < members; m++)
            work->estimates->sum[row + m * index->pages] = sum_of(page.sum[m]);
        OR_FAIL(add_page(index, members, number, &page, work->list + task, work->listed + head * index->pages + number))
    }
}

#endif
