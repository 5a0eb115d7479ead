/* Estimates in two passes over the pages (SPEC 4.2, 4.3): the largest ones, then the tokens that are good enough. */
#ifndef KIV_ESTIMATE_H
#define KIV_ESTIMATE_H

#include <stdlib.h>

#include "ranking.h"
#include "scan.h"

#define PAGES_AT_ONCE 4
#define PART_OF_PAGE 128 /* tokens whose estimates are in the nearest cache at once */
#define FAR 60.0f        /* e^-60 is still a number, and what is as much smaller than it is nothing beside it */
#define RATE 16          /* of so many groups of tokens one is a sample's */

/* Tokens of some pages that are good enough: name, group score, and for each member e^(logit - base). */
typedef struct {
    int64_t count, room;
    uint32_t *entry; /* [count][2 + M] words */
} List;

typedef struct {
    const Index *index;
    const Query *query;
    Estimates *estimates;
    float *sample;   /* [H][M][pages][groups of a page in the sample][TOKENS], estimates */
    float *most;     /* [H][M][pages] */
    float *top;      /* [H][M] */
    float *floor;    /* [H], a group score that `least` tokens will most likely reach */
    List *list;      /* [H][parts], empty where something is yet to be listed */
    uint8_t *lacks;  /* [H], whether it is */
    int64_t parts;   /* of the pages of a head, a task each */
    int64_t sampled; /* tokens of a page that are in the sample */
    int64_t rank;    /* of the floor, in the sample */
} Scan;

/* Estimates of some tokens of a page, rows of `stride`: those that were kept, or made in `room`. */
static float *part_estimates(const Scan *work, int64_t head, int64_t page, int64_t from, int64_t to, const Asked *asked,
                             float *room, int64_t *stride) {
    const Index *index = work->index;
    int64_t all = index->pages * index->tokens, members = work->query->members;
    float *kept = work->estimates->kept;
    *stride = kept ? all : PART_OF_PAGE;
    if (kept) room = kept + head * members * all + page * index->tokens + from;
    if (asked) scan(index, members, head, page, asked, room, *stride, from, to);
    return room;
}

static int64_t part_end(const Index *index, int64_t from) {
    return from + PART_OF_PAGE < index->tokens ? from + PART_OF_PAGE : index->tokens;
}

/* The largest estimates of pages, and a sample. */
static void look_at_pages(void *context, int64_t task) {
    const Scan *work = context;
    const Index *index = work->index;
    int64_t head = task / work->parts, first = task % work->parts * PAGES_AT_ONCE, members = work->query->members;
    float *room = kiv_workspace(2, members * PART_OF_PAGE * sizeof(float));
    Asked asked = asked_room(index, members);
    V most[members];
    OR_FAIL(room && asked.weight)
    for (int64_t page = first; page < first + PAGES_AT_ONCE && page < index->pages; page++) {
        foresee(index, head, page + 1);
        ask(index, work->query, head, page, &asked);
        for (int64_t m = 0; m < members; m++) most[m] = splat(-INFINITY);
        for (int64_t from = 0; from < index->tokens; from += PART_OF_PAGE) {
            int64_t stride, to = part_end(index, from);
            const float *part = part_estimates(work, head, page, from, to, &asked, room, &stride);
            for (int64_t m = 0; m < members; m++)
                for (int64_t t = 0; t < to - from; t += LANES) most[m] = larger(load(part + m * stride + t), most[m]);
            for (int64_t t = ROUND_UP(from, TOKENS * RATE); t < to; t += TOKENS * RATE)
                for (int64_t m = 0; m < members; m++) {
                    int64_t row = (head * members + m) * index->pages + page;
                    memcpy(work->sample + row * work->sampled + t / RATE, part + m * stride + t - from, TOKENS * sizeof(float));
                }
        }
        for (int64_t m = 0; m < members; m++)
            work->most[(head * members + m) * index->pages + page] = most_of(most[m]);
    }
}

/* The group score of a rank in the sample; without one if there are not as many. */
static void find_floor(void *context, int64_t head) {
    const Scan *work = context;
    const Query *query = work->query;
    int64_t pages = work->index->pages, count = pages * work->sampled, ties;
    float *group = kiv_workspace(2, count * sizeof(float)), *floor = work->floor + head;
    OR_FAIL(group)
    if (!work->lacks[head]) return;
    for (int64_t m = 0; m < query->members; m++) {
        int64_t row = head * query->members + m;
        float top = largest(work->most + row * pages, pages);
        work->top[row] = top < NONE ? NONE : top;
        for (int64_t i = 0; i < count; i += LANES) {
            V one = load(work->sample + row * count + i), before = m ? load(group + i) : splat(query->group_max ? -INFINITY : 0.0f);
            store(group + i, query->group_max ? larger(one, before) : exponential(one - splat(work->top[row])) + before);
        }
    }
    *floor = -INFINITY;
    if (work->rank >= count) return;
    uint32_t key = nth(group, count, work->rank, &ties);
    OR_FAIL(ties)
    key = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    memcpy(floor, &key, sizeof key);
}

/* Put weights in the place of estimates, and group scores of them; rows of a member whose weights have a base of their own
   (`own`) are moved to `others`. */
static void weigh_part(const Query *query, float *part, int64_t stride, int64_t some, const float *top, const float *base,
                       const uint8_t *own, float *others, float *group) {
    for (int64_t t = 0; t < some; t += LANES) store(group + t, splat(query->group_max ? -INFINITY : 0.0f));
    for (int64_t m = 0; m < query->members; m++) {
        float *row = part + m * stride, *other = others + m * PART_OF_PAGE;
        if (own[m]) {
            memcpy(other, row, some * sizeof(float));
            cap(other, some, query->softcap);
            exponentials(other, some, base[m]);
        }
        if (query->group_max) {
            for (int64_t t = 0; t < some; t += LANES) store(group + t, larger(load(row + t), load(group + t)));
            continue;
        }
        V less = splat(top[m]);
        for (int64_t t = 0; t < some; t += LANES) {
            V one = exponential(load(row + t) - less);
            store(row + t, one);
            store(group + t, load(group + t) + one);
        }
    }
}

/* Room for so many more entries of so many words. */
static int make_room(List *list, int64_t more, int64_t words) {
    if (list->count + more <= list->room) return 1;
    int64_t room = 2 * (list->count + more);
    uint32_t *entry = realloc(list->entry, room * words * sizeof(uint32_t));
    if (!entry) return 0;
    list->entry = entry;
    list->room = room;
    return 1;
}

/* SPEC 4.3: list what is good enough, and sum up the rest. */
static void list_pages(void *context, int64_t task) {
    const Scan *work = context;
    const Index *index = work->index;
    const Query *query = work->query;
    int64_t head = task / work->parts, first = task % work->parts * PAGES_AT_ONCE, members = query->members;
    List *list = work->list + task;
    const float *top = work->top + head * members, floor = work->floor[head];
    float *room = kiv_workspace(2, (2 * members + 1) * PART_OF_PAGE * sizeof(float)), base[members];
    float *others = room + members * PART_OF_PAGE, *group = others + members * PART_OF_PAGE;
    uint8_t own[members];
    Asked asked = asked_room(index, members);
    OR_FAIL(room && asked.weight)
    if (!work->lacks[head]) return;
    for (int64_t page = first; page < first + PAGES_AT_ONCE && page < index->pages; page++) {
        V sum[members];
        foresee(index, head, page + 1);
        if (!work->estimates->kept) ask(index, query, head, page, &asked);
        for (int64_t m = 0; m < members; m++) {
            int64_t row = (head * members + m) * index->pages + page;
            float most = work->most[row];
            own[m] = query->group_max || query->softcap != 0.0f || top[m] - most > FAR;
            base[m] = own[m] ? most : top[m];
            if (own[m]) cap(base + m, 1, query->softcap);
            work->estimates->base[row] = most == -INFINITY ? most : base[m];
            if (base[m] < NONE) base[m] = NONE;
            sum[m] = splat(0.0f);
        }
        for (int64_t from = 0; from < index->tokens; from += PART_OF_PAGE) {
            int64_t stride, end = part_end(index, from) - from, some = ROUND_UP(end, TOKENS);
            int64_t at = page * index->tokens + from;
            const Asked *anew = work->estimates->kept ? 0 : &asked;
            float *part = part_estimates(work, head, page, from, from + end, anew, room, &stride);
            weigh_part(query, part, stride, some, top, base, own, others, group);
            OR_FAIL(make_room(list, some, 2 + members))
            for (int64_t t = 0; t < some; t += LANES) {
                uint32_t good = bits_of(~(load(group + t) < splat(floor))); /* what is not a number too */
                for (; good; good &= good - 1) {
                    int64_t token = t + __builtin_ctz(good);
                    if (token >= end || (index->unseen && index->unseen[at + token])) continue;
                    uint32_t *entry = list->entry + list->count++ * (2 + members);
                    entry[0] = (uint32_t)(at + token);
                    memcpy(entry + 1, group + token, sizeof(float));
                    for (int64_t m = 0; m < members; m++) {
                        float *weight = own[m] ? others + m * PART_OF_PAGE + token : part + m * stride + token;
                        memcpy(entry + 2 + m, weight, sizeof(float));
                        *weight = 0.0f;
                    }
                }
            }
            for (int64_t m = 0; m < members; m++) {
                const float *row = own[m] ? others + m * PART_OF_PAGE : part + m * stride;
                for (int64_t t = 0; t < some; t += LANES) sum[m] += load(row + t);
            }
        }
        for (int64_t m = 0; m < members; m++)
            work->estimates->sum[(head * members + m) * index->pages + page] = sum_of(sum[m]);
    }
}

/* Heads whose lists are too short, which then are empty; `least` or all tokens there are do. */
static int64_t find_lacking(const Scan *work) {
    int64_t lacking = 0, tokens = work->index->pages * work->index->tokens, seen = tokens;
    if (work->index->unseen)
        for (int64_t t = 0; t < tokens; t++) seen -= work->index->unseen[t] != 0;
    for (int64_t head = 0; head < work->query->heads; head++) {
        int64_t count = 0;
        for (int64_t part = head * work->parts; part < (head + 1) * work->parts; part++) count += work->list[part].count;
        work->lacks[head] = count < work->estimates->least && count < seen;
        lacking += work->lacks[head];
        if (!work->lacks[head]) continue;
        for (int64_t part = head * work->parts; part < (head + 1) * work->parts; part++) work->list[part].count = 0;
    }
    return lacking;
}

/* Put the lists of all parts together. */
static int join_lists(const Scan *work) {
    Estimates *estimates = work->estimates;
    int64_t heads = work->query->heads, members = work->query->members, tokens = 0, at = 0;
    for (int64_t part = 0; part < heads * work->parts; part++) tokens += work->list[part].count;
    int64_t *room = kiv_workspace(4, 2 * heads * sizeof(int64_t) + tokens * (2 + members) * sizeof(float));
    if (!room) return 1;
    estimates->start = room;
    estimates->count = room + heads;
    estimates->score = (float *)(room + 2 * heads);
    estimates->listed = estimates->score + tokens;
    estimates->name = (int32_t *)(estimates->listed + tokens * members);
    for (int64_t head = 0; head < heads; head++) {
        const List *list = work->list + head * work->parts;
        int64_t start = at, count = 0;
        for (int64_t part = 0; part < work->parts; part++) count += list[part].count;
        float *listed = estimates->listed + start * members;
        for (; list < work->list + (head + 1) * work->parts; list++)
            for (int64_t i = 0; i < list->count; i++, at++) {
                const uint32_t *entry = list->entry + i * (2 + members);
                estimates->name[at] = (int32_t)entry[0];
                memcpy(estimates->score + at, entry + 1, sizeof(float));
                for (int64_t m = 0; m < members; m++) memcpy(listed + m * count + at - start, entry + 2 + m, sizeof(float));
            }
        estimates->start[head] = start;
        estimates->count[head] = count;
    }
    return 0;
}

static int estimate(const Index *index, const Query *query, Estimates *estimates) {
    int64_t heads = query->heads, rows = heads * query->members, pages = index->pages;
    int64_t parts = (pages + PAGES_AT_ONCE - 1) / PAGES_AT_ONCE, sampled = ROUND_UP(index->tokens, TOKENS * RATE) / RATE;
    int64_t floats = rows * (pages * (sampled + 1) + 1) + heads, some = sampled < index->tokens ? sampled : index->tokens;
    List *list = kiv_workspace(3, heads * parts * sizeof(List) + floats * sizeof(float) + heads);
    estimates->base = kiv_workspace(5, 2 * rows * pages * sizeof(float));
    if (!list || !estimates->base) return 1;
    estimates->sum = estimates->base + rows * pages;
    memset(list, 0, heads * parts * sizeof(List));
    float *sample = (float *)(list + heads * parts), *most = sample + rows * pages * sampled, *top = most + rows * pages;
    uint8_t *lacks = memset(top + rows + heads, 1, heads);
    Scan work = {index, query, estimates, sample, most, top, top + rows, list, lacks, parts, sampled, 0};
    /* A quarter more than are wanted, so that there will hardly ever be too few; then, as often as there are, many more. */
    work.rank = 5 * estimates->least * some / (4 * index->tokens) + TOKENS;
    int failed = kiv_run(look_at_pages, &work, heads * parts, query->threads);
    do {
        failed = failed || kiv_run(find_floor, &work, heads, query->threads) ||
                 kiv_run(list_pages, &work, heads * parts, query->threads);
        estimates->kept = 0; /* weights are in their place */
        work.rank *= 8;
    } while (!failed && find_lacking(&work));
    failed = failed || join_lists(&work);
    for (int64_t part = 0; part < heads * parts; part++) free(list[part].entry);
    return failed;
}

#endif
