/* Which few tokens of many: estimates, candidates, selection, tail (SPEC 4, 5.2). */
#ifndef KIV_RETRIEVE_H
#define KIV_RETRIEVE_H

#include "ranking.h"
#include "scan.h"

#define PAGES_AT_ONCE 4
#define ROWS_AT_ONCE 64
#define SHARE_LATE 16 /* SPEC 4.9 */

typedef struct {
    const Index *index;
    const Query *query;
    Estimates *estimates;
    const Found *found;
    float *tail;
    const float *top;          /* [H][M], the largest estimates */
    float *upper, *floor;      /* [H][pages][blocks]: no group score of a block is more; [H]: enough are no less */
    int64_t *place, *held;     /* [H * parts + 1]: where the tokens of a part are listed; [H * parts]: how many */
    int64_t parts, blocks;     /* of the pages of a head, a task each; of a page */
} Scan;

static inline int64_t blocks_of(const Index *index) { return (index->tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS; }

static inline int64_t block_end(const Index *index, int64_t block) {
    int64_t end = (block + 1) * BLOCK_TOKENS;
    return end < index->tokens ? end : index->tokens;
}

/* Estimates of a block of a page, rows of `stride`: those that were kept, or made again in `room`. */
static const float *block_estimates(const Scan *work, int64_t head, int64_t page, int64_t block, const Asked *asked,
                                    float *room, int64_t *stride) {
    const Index *index = work->index;
    int64_t all = index->pages * index->tokens, members = work->query->members, from = block * BLOCK_TOKENS;
    *stride = work->estimates->kept ? all : BLOCK_TOKENS;
    if (work->estimates->kept) return work->estimates->kept + head * members * all + page * index->tokens + from;
    scan(index, members, head, page, asked, room, BLOCK_TOKENS, from, block_end(index, block));
    return room;
}

/* Scan a few pages, and sum up their blocks. */
static void scan_pages(void *context, int64_t task) {
    const Scan *work = context;
    const Index *index = work->index;
    const Query *query = work->query;
    int64_t head = task / work->parts, first = task % work->parts * PAGES_AT_ONCE, members = query->members;
    int64_t all = index->pages * index->tokens, wide = ROUND_UP(index->tokens, BLOCK_TOKENS);
    float *kept = work->estimates->kept, *room = kiv_workspace(2, members * wide * sizeof(float));
    Asked asked = asked_room(index, members);
    OR_FAIL(room && asked.weight)
    for (int64_t page = first; page < first + PAGES_AT_ONCE && page < index->pages; page++) {
        float *out = kept ? kept + head * members * all + page * index->tokens : room;
        int64_t stride = kept ? all : wide;
        ask(index, query, head, page, &asked);
        scan(index, members, head, page, &asked, out, stride, 0, index->tokens);
        for (int64_t m = 0; m < members; m++) {
            int64_t at = ((head * members + m) * index->pages + page) * work->blocks;
            for (int64_t b = 0; b < work->blocks; b++) {
                int64_t from = b * BLOCK_TOKENS, some = block_end(index, b) - from;
                V part[BLOCK_TOKENS / LANES], largest = splat(-INFINITY), sum = splat(0.0f);
                for (int i = 0; i < BLOCK_TOKENS / LANES; i++) {
                    int64_t left = some - i * LANES;
                    part[i] = left > 0 ? load_some(out + m * stride + from + i * LANES, left, -INFINITY) : splat(-INFINITY);
                    largest = LARGER(largest, part[i]);
                }
                float most = most_of(largest), base = most < NONE ? NONE : most;
                for (int i = 0; i < BLOCK_TOKENS / LANES; i++) sum += exponential(part[i] - splat(base));
                work->estimates->most[at + b] = most;
                work->estimates->sum[at + b] = sum_of(sum);
            }
        }
    }
}

/* Bounds on the best group score of each block, and the score that `least` tokens reach for sure. */
static void bound_blocks(void *context, int64_t head) {
    const Scan *work = context;
    const Query *query = work->query;
    int64_t blocks = work->index->pages * work->blocks, members = query->members;
    float *upper = work->upper + head * blocks, *lower = kiv_workspace(2, ROUND_UP(blocks, LANES) * sizeof(float));
    OR_FAIL(lower)
    for (int64_t b = 0; b < blocks; b += LANES) {
        V sum = splat(query->group_max ? -INFINITY : 0.0f), most = sum;
        for (int64_t m = 0; m < members; m++) {
            V one = load_some(work->estimates->most + (head * members + m) * blocks + b, blocks - b, -INFINITY);
            if (!query->group_max) one = exponential(one - splat(work->top[head * members + m]));
            most = LARGER(most, one);
            sum = query->group_max ? most : sum + one;
        }
        if (!query->group_max) sum *= splat(1.00001f), most *= splat(0.99999f); /* more than roundings */
        store_some(upper + b, sum, blocks - b);
        store_some(lower + b, most, blocks - b);
    }
    work->floor[head] = -INFINITY;
    if (blocks >= work->estimates->least) {
        int64_t ties;
        uint32_t key = nth(lower, blocks, work->estimates->least, &ties);
        OR_FAIL(ties)
        key = key & 0x80000000u ? key & 0x7fffffffu : ~key;
        memcpy(work->floor + head, &key, sizeof key);
    }
}

/* SPEC 4.3, where a block may have tokens that are good enough. */
static void list_pages(void *context, int64_t task) {
    const Scan *work = context;
    const Index *index = work->index;
    const Query *query = work->query;
    int64_t head = task / work->parts, first = task % work->parts * PAGES_AT_ONCE, members = query->members, held = 0;
    float *room = kiv_workspace(2, members * BLOCK_TOKENS * sizeof(float));
    float *score = work->estimates->score + work->place[task];
    int32_t *name = work->estimates->name + work->place[task];
    const float *top = work->top + head * members, floor = work->floor[head];
    Asked asked = asked_room(index, members);
    OR_FAIL(room && asked.weight)
    for (int64_t page = first; page < first + PAGES_AT_ONCE && page < index->pages; page++) {
        int asks = !work->estimates->kept;
        for (int64_t b = 0; b < work->blocks; b++) {
            int64_t stride, at = page * index->tokens + b * BLOCK_TOKENS, some = block_end(index, b) - b * BLOCK_TOKENS;
            if (work->upper[(head * index->pages + page) * work->blocks + b] < floor) continue;
            if (asks) ask(index, query, head, page, &asked), asks = 0;
            const float *from = block_estimates(work, head, page, b, &asked, room, &stride);
            for (int64_t t = 0; t < some; t += LANES) {
                V group = splat(query->group_max ? -INFINITY : 0.0f), hidden = splat(0.0f);
                for (int64_t m = 0; m < members; m++) {
                    V one = load_some(from + m * stride + t, some - t, -INFINITY);
                    if (m == 0) hidden = one;
                    group = query->group_max ? LARGER(group, one) : group + exponential(one - splat(top[m]));
                }
                VI good = ~(group < splat(floor)) & (hidden != splat(-INFINITY)); /* what is not a number too */
                if (!any(good)) continue;
                float scores[LANES];
                int32_t mask[LANES];
                store(scores, group);
                memcpy(mask, &good, sizeof mask);
                for (int lane = 0; lane < LANES && t + lane < some; lane++) {
                    name[held] = (int32_t)(at + t + lane);
                    score[held] = scores[lane];
                    held -= mask[lane];
                }
            }
        }
    }
    work->held[task] = held;
}

/* Room for the tokens of the blocks that may have good ones. */
static int make_lists(Scan *work) {
    int64_t parts = work->query->heads * work->parts, each = work->index->pages * work->blocks, places = 0;
    for (int64_t part = 0; part < parts; part++) {
        int64_t head = part / work->parts, first = part % work->parts * PAGES_AT_ONCE * work->blocks;
        work->place[part] = places;
        for (int64_t b = first; b < first + PAGES_AT_ONCE * work->blocks && b < each; b++)
            places += work->upper[head * each + b] < work->floor[head] ? 0 : BLOCK_TOKENS;
    }
    int64_t heads = work->query->heads, nbytes = places * (sizeof(int32_t) + sizeof(float));
    int64_t *room = kiv_workspace(4, 2 * heads * sizeof(int64_t) + nbytes);
    if (!room) return 1;
    Estimates *estimates = work->estimates;
    estimates->start = room;
    estimates->count = room + heads;
    estimates->score = (float *)(room + 2 * heads);
    estimates->name = (int32_t *)(estimates->score + places);
    return 0;
}

static int estimate(const Index *index, const Query *query, Estimates *estimates) {
    int64_t heads = query->heads, rows = heads * query->members, blocks = blocks_of(index), all = index->pages * blocks;
    int64_t parts = (index->pages + PAGES_AT_ONCE - 1) / PAGES_AT_ONCE, tasks = heads * parts;
    int64_t *place = kiv_workspace(3, 2 * tasks * sizeof(int64_t) + (rows + heads * (1 + all)) * sizeof(float));
    if (!place) return 1;
    float *top = (float *)(place + 2 * tasks), *floor = top + rows, *upper = floor + heads;
    Scan work = {index, query, estimates, 0, 0, top, upper, floor, place, place + tasks, parts, blocks};
    if (kiv_run(scan_pages, &work, tasks, query->threads)) return 1;
    for (int64_t row = 0; row < rows; row++) {
        top[row] = largest(estimates->most + row * all, all);
        if (top[row] < NONE) top[row] = NONE;
    }
    if (kiv_run(bound_blocks, &work, heads, query->threads) || make_lists(&work)) return 1;
    if (kiv_run(list_pages, &work, tasks, query->threads)) return 1;
    for (int64_t head = 0; head < heads; head++) {
        int64_t start = place[head * parts], held = 0;
        for (int64_t part = head * parts; part < (head + 1) * parts; part++) {
            memmove(estimates->name + start + held, estimates->name + place[part], work.held[part] * sizeof(int32_t));
            memmove(estimates->score + start + held, estimates->score + place[part], work.held[part] * sizeof(float));
            held += work.held[part];
        }
        estimates->start[head] = start;
        estimates->count[head] = held;
    }
    return 0;
}

typedef struct {
    const Estimates *estimates;
    const Found *found;
} Best;

static void best_of_head(void *context, int64_t head) {
    const Estimates *estimates = ((const Best *)context)->estimates;
    const Found *found = ((const Best *)context)->found;
    int64_t start = estimates->start[head];
    take_best(estimates->score + start, estimates->name + start, estimates->count[head], found->candidates,
              found->at + head * found->stride);
}

/* SPEC 4.4: the best tokens of each head, at most `least`. */
static int best(const Query *query, const Estimates *estimates, const Found *found) {
    Best work = {estimates, found};
    return kiv_run(best_of_head, &work, query->heads, query->threads);
}

typedef struct {
    const Query *query;
    const Rows *rows;
    const Estimates *estimates;
    int64_t parts;
    Found *found;
    const int32_t *source; /* [H][candidates]: which row to read, or -1 - the candidate that is known, or null */
    const Found *known;
} Select;

static void score_rows(void *context, int64_t task) {
    const Select *select = context;
    const Query *query = select->query;
    const Found *found = select->found;
    int64_t head = task / select->parts, first = task % select->parts * ROWS_AT_ONCE, members = query->members;
    int64_t wide = ROUND_UP(query->width, LANES);
    int64_t stop = first + ROWS_AT_ONCE < found->candidates ? first + ROWS_AT_ONCE : found->candidates;
    float *asked = kiv_workspace(2, (members + 4) * wide * sizeof(float)), *key = asked + members * wide;
    OR_FAIL(asked)
    const int32_t *at = found->at + head * found->stride;
    const int32_t *source = select->source ? select->source + head * found->candidates : 0;
    for (int64_t m = 0; m < members; m++)
        widen(query->query + (head * members + m) * query->width, query->width, F32, asked + m * wide);
    float *raw = found->raw + head * members * found->stride;
    const float *row_at[4];
    int64_t number[4];
    int have = 0;
    for (int64_t k = first; k < stop; k++) {
        if (source && source[k] < 0) {
            const float *known = select->known->raw + head * members * select->known->stride - 1 - source[k];
            for (int64_t m = 0; m < members; m++) raw[m * found->stride + k] = known[m * select->known->stride];
        } else {
            int64_t row = select->rows->page ? at[k] : source ? source[k] : k;
            if (select->rows->page && k + ROWS_AHEAD < found->candidates)
                ask_ahead(select->rows, head, at[k + ROWS_AHEAD] - ROWS_AHEAD, INT64_MAX);
            widen(row_of(select->rows, head, row), query->width, select->rows->kind, key + have * wide);
            row_at[have] = key + have * wide;
            number[have++] = k;
        }
        if (have == 4 || (k + 1 == stop && have)) {
            for (int i = have; i < 4; i++) row_at[i] = row_at[0];
            for (int64_t m = 0; m < members; m++) {
                float products[4];
                four_products(asked + m * wide, row_at, wide, products);
                for (int i = 0; i < have; i++) raw[m * found->stride + number[i]] = products[i] * query->scale;
            }
            have = 0;
        }
    }
}

static void select_of_head(void *context, int64_t head) {
    const Select *select = context;
    Found *found = select->found;
    int64_t members = select->query->members, candidates = found->candidates;
    float *score = kiv_workspace(2, ROUND_UP(candidates, LANES) * 2 * sizeof(float) + candidates * sizeof(int32_t));
    OR_FAIL(score)
    float *one = score + ROUND_UP(candidates, LANES);
    int32_t *early = (int32_t *)(one + ROUND_UP(candidates, LANES)), *chosen = found->chosen + head * found->selected;
    for (int64_t k = 0; k < candidates; k++) score[k] = select->query->group_max ? -INFINITY : 0.0f;
    for (int64_t m = 0; m < members; m++) {
        const float *raw = found->raw + (head * members + m) * found->stride;
        float most = largest(raw, candidates);
        memcpy(one, raw, candidates * sizeof(float));
        if (!select->query->group_max) exponentials(one, candidates, most < NONE ? NONE : most);
        for (int64_t k = 0; k < candidates; k++)
            score[k] = !select->query->group_max ? score[k] + one[k] : one[k] > score[k] ? one[k] : score[k];
    }
    take_best(score, 0, candidates, found->selected, chosen);
    if (!select->estimates) return;
    /* SPEC 4.9: how many of the selected are not among the best three quarters of the estimates. */
    int64_t first = 3 * candidates / 4, late = 0, next = 0, spare = found->selected > first ? found->selected - first : 0;
    const int32_t *name = select->estimates->name + select->estimates->start[head], *at = found->at + head * found->stride;
    const float *group = select->estimates->score + select->estimates->start[head];
    for (int64_t k = 0, i = 0; k < candidates; k++) {
        while (name[i] != at[k]) i++;
        score[k] = group[i];
    }
    take_best(score, 0, candidates, first, early);
    for (int64_t i = 0; i < found->selected; i++) {
        while (next < first && early[next] < chosen[i]) next++;
        late += next == first || early[next] != chosen[i];
    }
    found->late[head] = SHARE_LATE * (late - spare) > found->selected;
}

/* Read the keys of the candidates and select. Where keys are in pages the candidates are ranked first; elsewhere the host
   had to know them to gather their keys. Keys of those that `known` has are not read again, and then nothing is said of
   late ones. */
static int select_tokens(const Query *query, const Rows *rows, const Estimates *estimates, const Found *known,
                         Found *found) {
    int64_t parts = (found->candidates + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    Select select = {query, rows, known ? 0 : estimates, parts, found, 0, known};
    if (rows->page && best(query, estimates, found)) return 1;
    if (known) {
        int32_t *source = kiv_workspace(3, query->heads * found->candidates * sizeof(int32_t));
        if (!source) return 1;
        for (int64_t head = 0; head < query->heads; head++) {
            const int32_t *had = known->at + head * known->stride, *at = found->at + head * found->stride;
            int64_t next = 0, rest = 0;
            for (int64_t k = 0; k < found->candidates; k++) {
                int same = next < known->candidates && had[next] == at[k];
                source[head * found->candidates + k] = (int32_t)(same ? -1 - next++ : rest++);
            }
        }
        select.source = source;
    }
    if (kiv_run(score_rows, &select, query->heads * parts, query->threads)) return 1;
    return kiv_run(select_of_head, &select, query->heads, query->threads);
}

static int64_t first_from(const int32_t *at, int64_t count, int64_t least) {
    int64_t low = 0, high = count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (at[middle] >= 0 && at[middle] < least) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Take a logarithm of a sum into another. */
static inline void join(float *most, float *sum, float more, float its_sum) {
    if (more == -INFINITY) return;
    if (more > *most) {
        *sum = *sum * (*most == -INFINITY ? 0.0f : expf(*most - more)) + its_sum;
        *most = more;
    } else {
        *sum += its_sum * expf(more - *most);
    }
}

/* SPEC 5.2. Blocks without a candidate were summed up before, unless a soft cap changes them. */
static void tail_pages(void *context, int64_t task) {
    const Scan *work = context;
    const Index *index = work->index;
    const Query *query = work->query;
    const Found *found = work->found;
    int64_t head = task / work->parts, first = task % work->parts * PAGES_AT_ONCE, members = query->members;
    float *room = kiv_workspace(2, (members + 1) * BLOCK_TOKENS * sizeof(float)), *row = room + members * BLOCK_TOKENS;
    const int32_t *at = found->at + head * found->stride, *chosen = found->chosen + head * found->selected;
    int64_t k = first_from(at, found->candidates, first * index->tokens), i = first_from(chosen, found->selected, k);
    Asked asked = asked_room(index, members);
    OR_FAIL(room && asked.weight)
    float most[members], sum[members];
    for (int64_t page = first; page < first + PAGES_AT_ONCE && page < index->pages; page++) {
        int asks = !work->estimates->kept;
        for (int64_t m = 0; m < members; m++) most[m] = -INFINITY, sum[m] = 0.0f;
        for (int64_t b = 0; b < work->blocks; b++) {
            int64_t begin = page * index->tokens + b * BLOCK_TOKENS, some = block_end(index, b) - b * BLOCK_TOKENS;
            int64_t stride, stop = k, after = i;
            while (stop < found->candidates && at[stop] >= 0 && at[stop] < begin + some) stop++;
            while (after < found->selected && chosen[after] >= 0 && chosen[after] < stop) after++;
            if (stop == k && query->softcap == 0.0f) {
                for (int64_t m = 0; m < members; m++) {
                    int64_t of = ((head * members + m) * index->pages + page) * work->blocks + b;
                    join(most + m, sum + m, work->estimates->most[of], work->estimates->sum[of]);
                }
                continue;
            }
            if (asks) ask(index, query, head, page, &asked), asks = 0;
            const float *from = block_estimates(work, head, page, b, &asked, room, &stride);
            for (int64_t m = 0; m < members; m++) {
                const float *raw = found->raw + (head * members + m) * found->stride;
                memcpy(row, from + m * stride, some * sizeof(float));
                for (int64_t j = k; j < stop; j++) row[at[j] - begin] = raw[j];
                for (int64_t j = i; j < after; j++) row[at[chosen[j]] - begin] = -INFINITY;
                cap(row, some, query->softcap);
                float one = largest(row, some);
                join(most + m, sum + m, one, exponentials(row, some, one < NONE ? NONE : one));
            }
            k = stop;
            i = after;
        }
        for (int64_t m = 0; m < members; m++)
            work->tail[(head * members + m) * index->pages + page] = most[m] == -INFINITY ? most[m] : most[m] + logf(sum[m]);
    }
}

static int tail(const Index *index, const Query *query, const Estimates *estimates, const Found *found, float *out) {
    int64_t parts = (index->pages + PAGES_AT_ONCE - 1) / PAGES_AT_ONCE;
    Scan work = {index, query, (Estimates *)estimates, found, out, 0, 0, 0, 0, 0, parts, blocks_of(index)};
    return kiv_run(tail_pages, &work, query->heads * parts, query->threads);
}

#endif
