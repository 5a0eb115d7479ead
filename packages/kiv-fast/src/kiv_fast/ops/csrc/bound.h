/* How much softmax mass may have been missed (SPEC 6.2), from the sums that the tail has of the estimates. What may be
   missed is rounded up and what is held down, as ops/bound.py has it. */
#ifndef KIV_BOUND_H
#define KIV_BOUND_H

#include "attend.h"

#define ROUNDED 0x1p-24 /* what an operation loses at most, of its result */
#define LEAST 0x1p-130f /* more than what is lost of scale * q where that is below the normal numbers */

/* The logarithm of e^a + e^b; no number if one of them is none. */
static inline double log_add(double a, double b) {
    double most = a > b ? a : b;
    return most == -INFINITY ? a + b : most + log1p(exp((a > b ? b : a) - most));
}

/* What a logit and a sum of exponentials lose at most, if Σ |scale * q| |k| of no key is more than `magnitude`;
   infinity where one may not be a number. */
static double lost(const Query *query, float magnitude) {
    float scale = fabsf(query->scale);
    if (!(magnitude < 2e37f * (scale < 1.0f ? scale : 1.0f))) return INFINITY;
    return ROUNDED * ((2.0 * query->width + 32.0) * magnitude + 8.0 * query->softcap + 512.0);
}

/* |scale * q|, nowhere 0, filled up with zeros. */
static void magnitudes(const Query *query, int64_t head, int64_t m, float *asked) {
    const float *q = query->query + (head * query->members + m) * query->width;
    for (int64_t d = 0; d < ROUND_UP(query->width, LANES); d++)
        asked[d] = d < query->width ? fabsf(q[d] * query->scale) + LEAST : 0.0f;
}

typedef struct {
    Softmax softmax;
    double *held; /* [H][M] */
} Held;

static void held_of_head(void *context, int64_t head) {
    const Held *work = context;
    const Query *query = work->softmax.query;
    const Attend *attend = work->softmax.attend;
    int64_t members = query->members, wide = ROUND_UP(query->width, LANES);
    float *logits = kiv_workspace(2, (members * PART_TOKENS + (members + 5) * wide) * sizeof(float));
    double *held = work->held + head * members;
    OR_FAIL(logits)
    float *room = logits + members * PART_TOKENS, *key = room, *size = room + (members + 4) * wide;
    memset(size, 0, wide * sizeof(float));
    for (int64_t m = 0; m < members; m++) held[m] = -INFINITY;
    for (int64_t r = 0; r < attend->runs; r++) {
        const Run *run = attend->run + r;
        for (int64_t first = 0; first < run->count; first += PART_TOKENS) {
            int64_t stop = first + PART_TOKENS < run->count ? first + PART_TOKENS : run->count;
            Part part = {(int)r, head, first, stop, 0, 0, 0, 0};
            run_logits(&work->softmax, &part, logits, PART_TOKENS, room);
            for (int64_t m = 0; m < members; m++) {
                double part_log = log_sums(logits + m * PART_TOKENS, stop - first);
                held[m] = log_add(held[m], part_log);
            }
            for (int64_t i = first; i < stop; i++) {
                widen(row_of(&run->key, head, i), query->width, run->key.kind, key);
                for (int64_t d = 0; d < wide; d += LANES) {
                    V one = (V)((VI)load(key + d) & 0x7fffffff);
                    store(size + d, larger(one, load(size + d)));
                }
            }
        }
    }
    for (int64_t m = 0; m < members; m++) {
        V magnitude = splat(0.0f);
        magnitudes(query, head, m, key);
        for (int64_t d = 0; d < wide; d += LANES) magnitude += load(key + d) * load(size + d);
        held[m] -= lost(query, sum_of(magnitude));
        if (query->sink) held[m] = log_add(held[m], query->sink[head * members + m]);
    }
}

/* Of each member no more than the logarithm of what runs and learned sinks weigh. */
static int held(const Query *query, const Attend *attend, double *logarithms) {
    Held work = {{query, attend, 0, 0, 0, 0, 0}, logarithms};
    return kiv_run(held_of_head, &work, query->heads, query->threads);
}

typedef struct {
    const Query *query;
    const Missed *missed;
} Missing;

/* What no score of a page exceeds its estimate by, in two parts; and no sum of products that made them is more than the
   third. */
static void slack(const Missed *missed, const Query *query, int64_t head, int64_t m, int64_t page, const float *asked,
                  float found[3]) {
    const Index *index = missed->index;
    int64_t width = index->width, channels = 2 * index->half, at = index->page[page] * index->heads + head;
    const float *error = missed->error + (page * index->heads + head) * width, *base = index->base + at * width;
    const float *step = index->step + at * channels, *q = query->query + (head * query->members + m) * width;
    const int16_t *channel = index->channels + at * channels;
    V far = splat(0.0f), near = splat(0.0f);
    for (int64_t d = 0; d < width; d += LANES) {
        V one = load(asked + d);
        far += one * load_some(error + d, width - d, 0.0f);
        near += one * (V)((VI)load_some(base + d, width - d, 0.0f) & 0x7fffffff);
    }
    const V scale = splat(query->scale), magic = splat(12582912.0f);
    float spread = sum_of(far), exact[ROUND_UP(channels, LANES)], unit, inverse;
    V size = splat(0.0f), most = size, missing = size;
    for (int64_t c = 0; c < channels; c++) exact[c] = q[channel[c]];
    for (int64_t c = 0; c < channels; c += LANES) {
        V one = load_some(exact + c, channels - c, 0.0f) * scale * load_some(step + c, channels - c, 0.0f);
        store(exact + c, one);
        one = (V)((VI)one & INT32_MAX);
        size += one;
        most = larger(one, most);
    }
    unit_of(most_of(most), &unit, &inverse);
    for (int64_t c = 0; c < channels; c += LANES) {
        V one = load(exact + c), whole = one * splat(inverse) + magic;
        missing += larger(one - (whole - magic) * splat(unit), splat(0.0f));
    }
    float less = 15.0f * sum_of(missing);
    found[0] = spread;
    found[1] = less;
    found[2] = spread + sum_of(near) + 16.0f * sum_of(size) + less;
}

/* Tokens of a page that were not read; *candidate goes on from the page's first candidate to the next page's. */
static int64_t unread_tokens(const Missed *missed, int64_t head, int64_t page, int64_t *candidate) {
    const Found *found = missed->found;
    const int32_t *at = found->at + head * found->stride;
    int64_t count = valid_tokens(missed->index, page), stop = (page + 1) * missed->index->tokens;
    for (; *candidate < found->candidates && at[*candidate] >= 0 && at[*candidate] < stop; ++*candidate) count--;
    return count;
}

/* The share of e^may in e^may + e^have: logarithms in float64, and their sums of fewer than 2^22 numbers. */
static double share_of(double may, double have) {
    double share = exp(0x1p-30 + 0x1p-52 * (fabs(have) + fabs(may)) - log_add(0.0, have - may));
    return share < 1.0 ? share : 1.0;
}

/* Of the tokens of a member whose keys were not read: how many, the logarithm of what they weigh at most, and of that
   what weigh those alone that are not listed, and so are never among the best. */
typedef struct {
    int64_t tokens;
    double all, unlisted;
} Unread;

/* What the sum of a page's weights is relative to. */
static float base_of(const Missed *missed, const Query *query, int64_t row, int64_t page) {
    float base = missed->estimates->most[row * missed->index->pages + page];
    cap(&base, 1, query->softcap);
    return base;
}

/* Look at the unread tokens page by page; `away` is what the logits of candidates lost. */
static Unread look_at_unread(const Missed *missed, const Query *query, int64_t row, const float *asked, double *page_log,
                             double *away) {
    int64_t head = row / query->members, m = row % query->members, pages = missed->index->pages, candidate = 0;
    const float *sums = missed->room + row * pages;
    double most = -INFINITY, total = 0.0;
    Unread unread = {0, 0.0, 0.0};
    for (int64_t p = 0; p < pages; p++) {
        float *told = missed->slack + 3 * (row * pages + p);
        if (!missed->known) slack(missed, query, head, m, p, asked, told);
        int64_t first = candidate, tokens = unread_tokens(missed, head, p, &candidate);
        double more = (double)told[0] + told[1], gone = lost(query, told[2]);
        for (int64_t k = first; k < candidate; k++) away[k] = gone;
        page_log[p] = -INFINITY;
        unread.tokens += tokens;
        if (tokens == 0) continue;
        double all = sums[p];
        page_log[p] = all + more + gone + 4 * ROUNDED * fabs(all);
        if (!(page_log[p] <= most)) most = page_log[p];
    }
    for (int64_t p = 0; p < pages; p++) {
        if (page_log[p] == -INFINITY) continue;
        double weight = exp(page_log[p] - most);
        float base = base_of(missed, query, row, p);
        total += weight;
        if (sums[p] > base - FAR) unread.unlisted += weight * missed->estimates->sum[row * pages + p] * expf(base - sums[p]);
    }
    unread.all = most + log(total) + ROUNDED * (6.0 * missed->index->tokens + 512.0);
    unread.unlisted = most + log(unread.unlisted);
    return unread;
}

static void missed_of_row(void *context, int64_t row) {
    const Query *query = ((const Missing *)context)->query;
    const Missed *missed = ((const Missing *)context)->missed;
    const Found *found = missed->found;
    int64_t head = row / query->members, rows = query->heads * query->members, wide = ROUND_UP(query->width, LANES);
    int64_t count = found->candidates, candidates = 0, selected = 0, pages = missed->index->pages;
    double *page_log = kiv_workspace(2, (pages + count) * sizeof(double) + (wide + 2 * ROUND_UP(count, LANES)) * sizeof(float));
    OR_FAIL(page_log)
    double *away = page_log + pages, *share = missed->share + row;
    float *asked = (float *)(away + count), *left = asked + wide, *kept = left + ROUND_UP(count, LANES);
    while (candidates < count && found->at[head * found->stride + candidates] >= 0) candidates++;
    magnitudes(query, head, row % query->members, asked);
    Unread unread = look_at_unread(missed, query, row, asked, page_log, away);
    memcpy(left, found->raw + row * found->stride, count * sizeof(float));
    cap(left, count, query->softcap);
    for (int64_t k = 0; k < candidates; k++) {
        away[k] += 4 * ROUNDED * (fabs(left[k]) + away[k]); /* adding it is rounded too */
        kept[k] = (float)(left[k] - away[k]);
    }
    double sums = ROUNDED * count, have = log_add(missed->held[row], log_sums(kept, candidates) - sums);
    share[0] = share[rows] = unread.tokens == 0 ? 0.0 : share_of(unread.all, have);
    /* With more candidates, what they weigh is held instead of missed; sums of exponentials may be off by a hundredth. */
    double least = 0.99 * exp(unread.unlisted - log_add(have, unread.all));
    share[2 * rows] = least > 0.0 ? least : 0.0;
    for (; selected < found->selected && found->chosen[head * found->selected + selected] >= 0; selected++) {
        int64_t one = found->chosen[head * found->selected + selected];
        kept[selected] = (float)(left[one] - away[one]);
        left[one] = -INFINITY;
    }
    if (selected == candidates) return;
    for (int64_t k = 0; k < candidates; k++)
        if (left[k] != -INFINITY) left[k] = (float)(left[k] + away[k]);
    have = log_add(missed->held[row], log_sums(kept, selected) - sums);
    share[0] = share_of(log_add(unread.all, log_sums(left, count) + sums), have);
}

/* What the structures say of one head alone: addresses begin with it, distances stay. */
static void only_head(int64_t head, Query *query, Index *index, Estimates *estimates, Missed *missed) {
    int64_t channels = 2 * index->half, rows = head * query->members;
    query->query += rows * query->width;
    query->heads = 1;
    index->codes += head * ROUND_UP(index->tokens, TOKENS) * index->half;
    index->channels += head * channels;
    index->step += head * channels;
    index->base += head * index->width;
    estimates->most += rows * index->pages;
    estimates->sum += rows * index->pages;
    estimates->start += head;
    estimates->count += head;
    estimates->room += head;
    missed->error += head * index->width;
    missed->held += rows;
    missed->slack += 3 * rows * index->pages;
}

/* SPEC 6.2. The tail of a selection of every candidate has the sums of all that was not read. */
static int missed(const Query *asked, const Missed *of) {
    Query query = *asked;
    Index index = *of->index;
    Estimates estimates = *of->estimates;
    Missed missed = *of;
    Found all = *of->found;
    missed.index = &index;
    missed.estimates = &estimates;
    if (of->head >= 0) only_head(of->head, &query, &index, &estimates, &missed);
    int32_t *every = kiv_workspace(3, (query.heads * all.candidates + 1) * sizeof(int32_t));
    if (!every) return 1;
    for (int64_t head = 0; head < query.heads; head++)
        for (int64_t k = 0; k < all.candidates; k++)
            every[head * all.candidates + k] = all.at[head * all.stride + k] < 0 ? -1 : (int32_t)k;
    all.chosen = every;
    all.selected = all.candidates;
    if (tail(&index, &query, &estimates, &all, missed.room)) return 1;
    Missing work = {&query, &missed};
    return kiv_run(missed_of_row, &work, query.heads * query.members, query.threads);
}

#endif
