/* Estimates in one pass over the pages (SPEC 4.2, 4.3): the tokens that are good enough, and of the others the sums. */
#ifndef KIV_ESTIMATE_H
#define KIV_ESTIMATE_H

#include "list.h"

#define ROUNDING 1e-4f /* more than what group scores differ by that are relative to other tops, as a share */

/* Rows of so many listed tokens: copies of pages, and vectors, may go beyond their end. */
static inline int64_t listed_room(int64_t count) { return ROUND_UP(count, LANES) + LANES; }

static inline float *listed_row(const Estimates *estimates, int64_t members, int64_t head, int64_t m) {
    return estimates->listed + estimates->start[head] * members + m * estimates->room[head];
}

/* Put the lists of all parts of a head together. */
static void join_lists(const Scan *work, int64_t head) {
    const Estimates *estimates = work->estimates;
    int64_t members = work->query->members, pages = work->index->pages, at = 0;
    float *name = (float *)estimates->name + estimates->start[head];
    for (int64_t part = 0; part < work->parts; part++) {
        const float *from = (const float *)work->list[head * work->parts + part].word;
        int64_t last = (part + 1) * PAGES_AT_ONCE < pages ? (part + 1) * PAGES_AT_ONCE : pages;
        for (int64_t page = part * PAGES_AT_ONCE; page < last; page++) {
            int64_t count = work->listed[head * pages + page];
            for (int64_t row = 0; row <= members; row++, from += count) {
                float *to = row ? listed_row(estimates, members, head, row - 1) : name;
                for (int64_t i = 0; i < count; i += LANES) store(to + at + i, load(from + i));
            }
            at += count;
        }
    }
}

/* Group scores of what is listed, relative to the largest estimates of all; those are the tops from now on. Returns how much
   more than by a guess of the tops a group score may be. */
static float score_listed(const Scan *work, int64_t head) {
    const Query *query = work->query;
    const Estimates *estimates = work->estimates;
    int64_t members = query->members, pages = work->index->pages, count = estimates->count[head];
    float *score = estimates->score + estimates->start[head], more = -INFINITY;
    for (int64_t m = 0; m < members; m++) {
        const float *row = listed_row(estimates, members, head, m);
        float top = largest(estimates->most + (head * members + m) * pages, pages);
        float *before = work->top + head * members + m;
        if (top < NONE) top = NONE;
        if (more == more && !(*before - top <= more)) more = *before - top; /* what is not a number stays */
        *before = top;
        for (int64_t i = 0; i < count; i += LANES) {
            V one = load(row + i), sum = m ? load(score + i) : splat(query->group_max ? -INFINITY : 0.0f);
            store(score + i, query->group_max ? larger(one, sum) : exponential(one - splat(top)) + sum);
        }
    }
    return expf(more < -87.0f ? -87.0f : more > 88.0f ? 88.0f : more);
}

/* Add up the weights of listed tokens [from, to) of a page, of those whose mask has all bits. */
static inline float sum_listed(const float *estimate, const int32_t *mask, int64_t from, int64_t to, float base,
                               float softcap) {
    V sum = splat(0.0f);
    VI lane, some;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    for (int64_t i = from; i < to; i += LANES) {
        V one = load(estimate + i);
        if (softcap != 0.0f) one = capped(one, softcap);
        memcpy(&some, mask + i, sizeof some);
        sum += (V)((VI)exponential(one - splat(base)) & some & (lane < (int32_t)(to - i)));
    }
    return sum_of(sum);
}

/* A group score that a few more than `least` of the listed tokens reach. */
static float lower_floor(const float *score, int64_t count, int64_t least) {
    const int64_t rate = 16, some = count / rate;
    float *sample = kiv_workspace(2, some * sizeof(float));
    int64_t ties = 0;
    for (int64_t i = 0; sample && i < some; i++) sample[i] = score[i * rate];
    uint32_t key = sample ? nth(sample, some, 5 * least / (4 * rate) + rate, &ties) : 0;
    if (ties == 0) kiv_no_memory();
    return ties ? score_of(key) : -INFINITY;
}

/* Leave of a long list what a floor by its own scores asks for, and add the rest to the sums of its pages. */
static void shorten(void *context, int64_t head) {
    const Scan *work = context;
    const Estimates *estimates = work->estimates;
    int64_t members = work->query->members, pages = work->index->pages, count = estimates->count[head], kept = 0;
    const int32_t *listed = work->listed + head * pages;
    if (count < 2 * estimates->least) return;
    float *score = estimates->score + estimates->start[head], floor = lower_floor(score, count, estimates->least);
    int32_t *less = kiv_workspace(2, listed_room(count) * sizeof(int32_t));
    OR_FAIL(less)
    for (int64_t i = 0; i < count; i++) {
        less[i] = -(score[i] < floor);
        kept += less[i] + 1;
    }
    if (kept < estimates->least) return;
    for (int64_t m = 0; m < members; m++) {
        const float *row = listed_row(estimates, members, head, m);
        int64_t place = (head * members + m) * pages, at = 0;
        for (int64_t page = 0; page < pages; at += listed[page++]) {
            float base = estimates->most[place + page], softcap = work->query->softcap;
            cap(&base, 1, softcap);
            estimates->sum[place + page] += sum_listed(row, less, at, at + listed[page], base, softcap);
        }
    }
    int32_t *from = less; /* takes its place as it is read */
    for (int64_t i = 0, to = 0; i < count; i++) {
        int stays = less[i] + 1;
        from[to] = (int32_t)i;
        to += stays;
    }
    for (int64_t r = 0; r < members + 2; r++) {
        float *row = r < members ? listed_row(estimates, members, head, r)
                                 : r == members ? score : (float *)estimates->name + estimates->start[head];
        for (int64_t i = 0; i < kept; i++) row[i] = row[from[i]];
    }
    estimates->count[head] = kept;
}

/* Whether what is listed surely has the `least` best. What is not listed has a lower score than the floor by the tops that
   were guessed, so by the right ones no more than `more` times the floor. Else a floor for the next pass is set. */
static void finish(void *context, int64_t head) {
    const Scan *work = context;
    const Estimates *estimates = work->estimates;
    const float *score = estimates->score + estimates->start[head];
    int64_t count = estimates->count[head], least = estimates->least, enough = 0, ties;
    join_lists(work, head);
    float more = score_listed(work, head), *floor = work->floor + head;
    work->lacks[head] = work->lacks[head] && *floor != -INFINITY;
    if (!work->lacks[head]) return;
    if (more != more) { /* a top is none: whatever there is, is listed */
        *floor = -INFINITY;
        return;
    }
    float reached = work->query->group_max ? *floor : more * *floor * (1.0f + ROUNDING);
    for (int64_t i = 0; i < count; i++) enough += !(score[i] < reached);
    work->lacks[head] = enough < least;
    if (!work->lacks[head]) return;
    if (count < least) {
        find_floor(context, head);
        return;
    }
    uint32_t key = nth(score, count, least, &ties);
    OR_FAIL(ties)
    *floor = score_of(key);
    *floor -= 2.0f * ROUNDING * fabsf(*floor);
}

/* Make room for what is listed of all heads, and have it ranked. */
static int finish_heads(Scan *work) {
    Estimates *estimates = work->estimates;
    int64_t heads = work->query->heads, members = work->query->members, pages = work->index->pages, tokens = 0;
    estimates->start = estimates->count + heads;
    estimates->room = estimates->start + heads;
    for (int64_t head = 0; head < heads; head++) {
        estimates->start[head] = tokens;
        estimates->count[head] = 0;
        for (int64_t page = 0; page < pages; page++) estimates->count[head] += work->listed[head * pages + page];
        tokens += estimates->room[head] = listed_room(estimates->count[head]);
    }
    estimates->name = kiv_workspace(4, tokens * (2 + members) * sizeof(float));
    if (!estimates->name) return 1;
    estimates->score = (float *)(estimates->name + tokens);
    estimates->listed = estimates->score + tokens;
    return kiv_run(finish, work, heads, work->query->threads);
}

static int64_t lacking(const Scan *work) {
    int64_t count = 0;
    for (int64_t head = 0; head < work->query->heads; head++) {
        if (!work->lacks[head]) continue;
        for (int64_t part = 0; part < work->parts; part++) work->list[head * work->parts + part].words = 0;
        count++;
    }
    return count;
}

/* A rank of the sample that lists several times as many as are wanted: by the right tops others are the best than by guessed
   ones, unless there is one top, or all are right. */
static int64_t guessed_rank(const Index *index, int64_t members, int64_t least, int64_t sampled) {
    int64_t some = sampled < index->tokens ? sampled : index->tokens, quarters = 4 + 6 * members;
    if (members == 1 || members > MANY) quarters = 6;
    return (quarters < 32 ? quarters : 32) * least * some / (4 * index->tokens) + TOKENS;
}

static int estimate(const Index *index, const Query *query, Estimates *estimates) {
    int64_t heads = query->heads, rows = heads * query->members, pages = index->pages;
    int64_t parts = (pages + PAGES_AT_ONCE - 1) / PAGES_AT_ONCE, sampled = ROUND_UP(index->tokens, TOKENS * RATE) / RATE;
    int64_t asked = asked_bytes(index, query->members), kept = heads * pages * asked <= ASKED_BYTES ? heads * pages * asked : 0;
    int64_t floats = rows * (pages * sampled + 1) + heads * (pages + 1);
    List *list = kiv_workspace(3, heads * parts * sizeof(List) + floats * sizeof(float) + kept + heads);
    estimates->most = kiv_workspace(5, 2 * rows * pages * sizeof(float) + 3 * heads * sizeof(int64_t));
    if (!list || !estimates->most) return 1;
    estimates->count = (int64_t *)estimates->most;
    estimates->most += 6 * heads;
    estimates->sum = estimates->most + rows * pages;
    memset(list, 0, heads * parts * sizeof(List));
    float *sample = (float *)(list + heads * parts), *top = sample + rows * pages * sampled, *floor = top + rows;
    int32_t *listed = (int32_t *)(floor + heads);
    uint8_t *room = (uint8_t *)(listed + heads * pages), *lacks = memset(room + kept, 1, heads);
    Scan work = {index, query, estimates, list, asked, kept ? room : 0, sample, top, floor, listed, lacks, parts, sampled, 0};
    work.rank = guessed_rank(index, query->members, estimates->least, sampled);
    int all = work.rank >= pages * sampled; /* few tokens, which are all listed */
    if (all) work.kept = 0;
    for (int64_t row = 0; row < rows + heads; row++) top[row] = row < rows ? 0.0f : -INFINITY;
    int failed = !all && (kiv_run(look_at_pages, &work, heads * parts, query->threads) ||
                          kiv_run(guess, &work, heads, query->threads));
    do {
        work.rank *= 8; /* for those of whom too few are listed */
        failed = failed || kiv_run(list_pages, &work, heads * parts, query->threads) || finish_heads(&work);
    } while (!failed && lacking(&work));
    failed = failed || kiv_run(shorten, &work, heads, query->threads);
    for (int64_t part = 0; part < heads * parts; part++) free(list[part].word);
    return failed;
}

#endif
