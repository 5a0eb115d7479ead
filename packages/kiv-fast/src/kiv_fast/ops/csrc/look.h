/* A look at a sample of the cold tokens: what a group score must reach to be among the best, most likely. */
#ifndef KIV_LOOK_H
#define KIV_LOOK_H

#include "ranking.h"
#include "scan.h"

#define PAGES_AT_ONCE 4
#define RATE 32             /* of so many groups of tokens one is a sample's */
#define MANY 16             /* members, of which some sample's top is always too wrong: all tokens are looked at for theirs */
#define ASKED_BYTES 4194304 /* what pages ask is kept if it takes no more */

/* Tokens of some pages that are good enough, page by page: their names, and of each member their estimates. */
typedef struct {
    int64_t words, room;
    uint32_t *word;
} List;

typedef struct {
    const Index *index;
    const Query *query;
    Estimates *estimates;
    List *list;      /* [H][parts] */
    int64_t asked;   /* bytes of `kept` that a page has */
    uint8_t *kept;   /* [H][pages][asked], what pages ask, or null: then it is computed again */
    float *sample;   /* [H][M][pages][sampled], estimates */
    float *top;      /* [H][M], what group scores are relative to: the largest estimates, or a guess */
    float *floor;    /* [H], a group score that `least` tokens reach, most likely */
    int32_t *listed; /* [H][pages], how many tokens of a page are listed */
    uint8_t *lacks;  /* [H], whether something is yet to be listed */
    int64_t parts;   /* of the pages of a head, a task each */
    int64_t sampled; /* tokens of a page that are in the sample */
    int64_t rank;    /* of the floor, in the sample */
} Scan;

/* What a page asks, computed unless it was kept. */
static Asked asked_of(const Scan *work, int64_t head, int64_t page, int again) {
    const Index *index = work->index;
    void *room = work->kept ? work->kept + (head * index->pages + page) * work->asked : kiv_workspace(0, work->asked);
    Asked asked = room ? asked_in(room, index, work->query->members) : (Asked){0};
    if (room && !(again && work->kept)) {
        foresee(index, head, page + 1);
        ask(index, work->query, head, page, &asked);
    }
    return asked;
}

/* The estimates of the sample, and the largest of each page if there are many members. */
static void look_at_pages(void *context, int64_t task) {
    const Scan *work = context;
    const Index *index = work->index;
    int64_t head = task / work->parts, first = task % work->parts * PAGES_AT_ONCE, members = work->query->members;
    int64_t size = members > MANY ? TOKENS * RATE : TOKENS, tokens = index->tokens;
    float *room = kiv_workspace(2, members * (size + 1) * sizeof(float)), *most = room + members * size;
    OR_FAIL(room)
    for (int64_t page = first; page < first + PAGES_AT_ONCE && page < index->pages; page++) {
        Asked asked = asked_of(work, head, page, 0);
        int64_t row = head * members * index->pages + page;
        OR_FAIL(asked.high)
        for (int64_t m = 0; m < members; m++) most[m] = -INFINITY;
        for (int64_t t = 0; t < tokens; t += TOKENS * RATE) {
            scan(index, members, head, page, &asked, room, size, t, t + size < tokens ? t + size : tokens);
            for (int64_t m = 0; m < members; m++) {
                float *to = work->sample + (row + m * index->pages) * work->sampled + t / RATE;
                float part = largest(room + m * size, t + size < tokens ? size : tokens - t);
                memcpy(to, room + m * size, TOKENS * sizeof(float));
                most[m] = part > most[m] ? part : most[m];
            }
        }
        for (int64_t m = 0; m < members; m++) work->estimates->most[row + m * index->pages] = most[m];
    }
}

/* The group score of a rank in the sample; without one if there are not as many. */
static void find_floor(void *context, int64_t head) {
    const Scan *work = context;
    const Query *query = work->query;
    int64_t count = work->index->pages * work->sampled, ties;
    float *group = kiv_workspace(2, count * sizeof(float)), *floor = work->floor + head;
    OR_FAIL(group)
    for (int64_t m = 0; m < query->members; m++) {
        const float *row = work->sample + (head * query->members + m) * count;
        const V top = splat(work->top[head * query->members + m]);
        for (int64_t i = 0; i < count; i += LANES) {
            V one = load(row + i), before = m ? load(group + i) : splat(query->group_max ? -INFINITY : 0.0f);
            store(group + i, query->group_max ? larger(one, before) : exponential(one - top) + before);
        }
    }
    *floor = -INFINITY;
    if (work->rank >= count) return;
    uint32_t key = nth(group, count, work->rank, &ties);
    OR_FAIL(ties)
    *floor = score_of(key);
}

/* Guess at the largest estimates, by what the sample weighs: its own largest ones are more a matter of chance. */
static void guess(void *context, int64_t head) {
    const Scan *work = context;
    int64_t members = work->query->members, pages = work->index->pages, count = pages * work->sampled;
    for (int64_t row = head * members; row < (head + 1) * members; row++) {
        const float *from = work->sample + row * count;
        float most = largest(members > MANY ? work->estimates->most + row * pages : from, members > MANY ? pages : count);
        V sum = splat(0.0f);
        if (most < NONE) most = NONE;
        for (int64_t i = 0; i < count && members <= MANY; i += LANES) sum += exponential(load(from + i) - splat(most));
        work->top[row] = members > MANY || most == NONE ? most : most + logf(sum_of(sum));
    }
    find_floor(context, head);
}

#endif
