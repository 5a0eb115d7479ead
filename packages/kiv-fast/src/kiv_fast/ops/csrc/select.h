/* The candidates and, of these, the selection (SPEC 4.4 to 4.6, 4.9). */
#ifndef KIV_SELECT_H
#define KIV_SELECT_H

#include "estimate.h"
#include "products.h"

#define ROWS_AT_ONCE 64
#define SHARE_LATE 16 /* SPEC 4.9 */

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

#define TOGETHER_READ 16 /* rows that are multiplied in one call, while the next ones are on their way */

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
    float *asked = kiv_workspace(2, ((members + 4) * wide + members * TOGETHER_READ) * sizeof(float));
    OR_FAIL(asked)
    const int32_t *at = found->at + head * found->stride;
    const int32_t *source = select->source ? select->source + head * found->candidates : 0;
    for (int64_t m = 0; m < members; m++)
        widen(query->query + (head * members + m) * query->width, query->width, F32, asked + m * wide);
    float *raw = found->raw + head * members * found->stride, *key = asked + members * wide, *product = key + 4 * wide;
    const void *row_at[TOGETHER_READ];
    int64_t number[TOGETHER_READ];
    int have = 0;
    for (int64_t k = first; k < stop; k++) {
        if (source && source[k] < 0) {
            const float *known = select->known->raw + head * members * select->known->stride - 1 - source[k];
            for (int64_t m = 0; m < members; m++) raw[m * found->stride + k] = known[m * select->known->stride];
        } else {
            int64_t row = select->rows->page ? at[k] : source ? source[k] : k;
            if (select->rows->page && k + ROWS_AHEAD < found->candidates)
                ask_row(select->rows, head, at[k + ROWS_AHEAD]);
            row_at[have] = row_of(select->rows, head, row);
            number[have++] = k;
        }
        if (have == TOGETHER_READ || (k + 1 == stop && have)) {
            for (int i = have; i < ROUND_UP(have, ROWS); i++) row_at[i] = row_at[0];
            products(asked, members, wide, row_at, have, query->width, select->rows->kind, key, product, TOGETHER_READ);
            for (int64_t m = 0; m < members; m++)
                for (int i = 0; i < have; i++)
                    raw[m * found->stride + number[i]] = product[m * TOGETHER_READ + i] * query->scale;
            have = 0;
        }
    }
}

static void select_of_head(void *context, int64_t head) {
    const Select *select = context;
    Found *found = select->found;
    int64_t members = select->query->members, candidates = found->candidates;
    float *score = kiv_workspace(2, ROUND_UP(candidates, LANES) * 2 * sizeof(float) + candidates);
    OR_FAIL(score)
    float *one = score + ROUND_UP(candidates, LANES);
    uint8_t *is_late = (uint8_t *)(one + ROUND_UP(candidates, LANES));
    int32_t *chosen = found->chosen + head * found->selected;
    if (!select->estimates && found->selected == candidates) {
        for (int64_t k = 0; k < candidates; k++) chosen[k] = (int32_t)k;
        return;
    }
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
    int64_t first = 3 * candidates / 4, late = 0, spare = found->selected > first ? found->selected - first : 0, ties = 0;
    const int32_t *name = select->estimates->name + select->estimates->start[head], *at = found->at + head * found->stride;
    const float *group = select->estimates->score + select->estimates->start[head];
    for (int64_t k = 0, i = 0; k < candidates; i++) {
        score[k] = group[i];
        k += name[i] == at[k];
    }
    uint32_t least = first ? nth(score, candidates, first, &ties) : UINT32_MAX;
    OR_FAIL(ties || !first)
    for (int64_t k = 0; k < candidates; k++) {
        uint32_t key = order(score[k]);
        int equal = key == least && ties > 0;
        ties -= equal;
        is_late[k] = !(key > least || equal);
    }
    for (int64_t i = 0; i < found->selected; i++) late += is_late[chosen[i]];
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

#endif
