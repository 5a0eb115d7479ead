/* Softmax attention over sinks, hot tokens, selection and tail (SPEC 5), in parts of fixed sizes that are merged in order:
   the same numbers with any number of threads. */
#ifndef KIV_ATTEND_H
#define KIV_ATTEND_H

#include "tail.h"

#define PART_TOKENS 256
#define MOST_PARTS 64 /* of a run: parts of long ones are larger */
#define AT_ONCE 64    /* rows whose places are written down together */
#define POWER 4       /* SPEC 5.4 */

/* A part of the softmax of one head: what it weighs, and for each member the largest logit, sum and weighed values. */
typedef struct {
    int kind; /* a run's number, or one of the following */
    int64_t head, first, stop;
    float *most, *total, *sum; /* [M], [M], [M][DV] */
    float *shift;              /* [M][DV], or null: values weighed for the shift, or mean values to take off */
} Part;

enum { SELECTED = -1, TAIL = -2 };

typedef struct {
    const Query *query;
    const Attend *attend;
    Part *part;
    int64_t parts, wide; /* DV, rounded up */
    float *weight;       /* [H][M][selected], of the shift */
    float *off;          /* [H][M][pages]: the same by page */
} Softmax;

static int64_t part_tokens(int64_t count) {
    int64_t even = ROUND_UP((count + MOST_PARTS - 1) / MOST_PARTS, LANES);
    return even > PART_TOKENS ? even : PART_TOKENS;
}

static void add_value(float *sum, const float *value, float weight, int64_t wide) {
    for (int64_t d = 0; d < wide; d += LANES) store(sum + d, load(sum + d) + splat(weight) * load(value + d));
}

/* The i-th value of a part that is no run's, and its dtype. */
static const void *value_of(const Softmax *softmax, const Part *part, int64_t i, int64_t *kind) {
    const Attend *attend = softmax->attend;
    if (part->kind == TAIL) {
        const Index *index = attend->index;
        *kind = F32;
        return index->mean + (index->page[part->first + i] * index->heads + part->head) * attend->value_width;
    }
    const Found *found = attend->found;
    const int32_t *chosen = found->chosen + part->head * found->selected + part->first + i;
    const int32_t *at = found->at + part->head * found->stride;
    *kind = attend->value.kind;
    if (!attend->value.page) return row_of(&attend->value, part->head, part->first + i);
    if (i + ROWS_AHEAD < part->stop - part->first && chosen[ROWS_AHEAD] >= 0)
        ask_row(&attend->value, part->head, at[chosen[ROWS_AHEAD]]);
    int64_t token = *chosen < 0 ? -1 : at[*chosen];
    return row_of(&attend->value, part->head, token < 0 ? 0 : token); /* else its weight is 0 or below */
}

/* Weigh the values of a part: weights [M] in rows of `stride`, and in `more` those of the shift. What is hidden, with a
   weight below 0, is left out. */
static void weigh(const Softmax *softmax, const Part *part, const float *weights, const float *more, int64_t more_stride,
                  int64_t stride, float *value) {
    const Attend *attend = softmax->attend;
    int64_t members = softmax->query->members, wide = softmax->wide, count = part->stop - part->first;
    const Run *run = part->kind < 0 ? 0 : attend->run + part->kind;
    int64_t kind = run ? run->value.kind : F32;
    float *zeros = value + AT_ONCE * wide;
    memset(zeros, 0, wide * sizeof(float));
    for (int64_t first = 0; first < count; first += AT_ONCE) {
        int64_t have = count - first < AT_ONCE ? count - first : AT_ONCE;
        const void *stored[AT_ONCE], *seen[AT_ONCE], *moved[AT_ONCE];
        if (run) rows_from(&run->value, part->head, part->first + first, have, have, stored);
        else
            for (int64_t j = 0; j < have; j++) stored[j] = value_of(softmax, part, first + j, &kind);
        if (attend->finite && attend->value_width == wide) {
            add_values(part->sum, members, wide, stored, have, kind, weights + first, stride);
            if (more) add_values(part->shift, members, wide, stored, have, kind, more + first, more_stride);
            continue;
        }
        for (int64_t j = 0; j < have; j++) widen(stored[j], attend->value_width, kind, value + j * wide);
        for (int64_t m = 0; m < members; m++) {
            const float *whole = weights + m * stride + first, *others = more ? more + m * more_stride + first : 0;
            float w[AT_ONCE];
            for (int64_t j = 0; j < have; j++) {
                /* What is not attended is zeros, not something times 0: an infinity would turn into NaN. */
                seen[j] = whole[j] < 0.0f ? zeros : value + j * wide;
                w[j] = whole[j] < 0.0f ? 0.0f : whole[j];
                if (more) moved[j] = others[j] == 0.0f ? zeros : value + j * wide;
            }
            add_values(part->sum + m * wide, 1, wide, seen, have, F32, w, 0);
            if (more) add_values(part->shift + m * wide, 1, wide, moved, have, F32, others, 0);
        }
    }
}

/* Logits of a part of a run, [M] rows of `stride`; minus infinity where a query does not see a token. */
static void run_logits(const Softmax *softmax, const Part *part, float *logits, int64_t stride, float *room) {
    const Query *query = softmax->query;
    const Attend *attend = softmax->attend;
    const Run *run = attend->run + part->kind;
    int64_t members = query->members, wide = ROUND_UP(query->width, LANES), count = part->stop - part->first;
    float *asked = room, *key = room + members * wide;
    for (int64_t m = 0; m < members; m++)
        widen(query->query + (part->head * members + m) * query->width, query->width, F32, asked + m * wide);
    for (int64_t i = 0; i < count; i += AT_ONCE) {
        int64_t have = count - i < AT_ONCE ? count - i : AT_ONCE;
        const void *row[AT_ONCE];
        rows_from(&run->key, part->head, part->first + i, have, ROUND_UP(have, ROWS), row);
        products(asked, members, wide, row, have, query->width, run->key.kind, key, logits + i, stride);
    }
    for (int64_t m = 0; m < members; m++)
        for (int64_t i = 0; i < count; i += LANES)
            store(logits + m * stride + i, load(logits + m * stride + i) * splat(query->scale));
    for (int64_t m = 0; m < members; m++) {
        cap(logits + m * stride, count, query->softcap);
        int64_t seen = attend->position[m % attend->queries] - run->first + 1 - part->first;
        for (int64_t i = seen < 0 ? 0 : seen; i < count; i++) logits[m * stride + i] = -INFINITY;
    }
    if (run->valid)
        for (int64_t i = 0; i < count; i++)
            if (!run->valid[part->first + i])
                for (int64_t m = 0; m < members; m++) logits[m * stride + i] = -INFINITY;
}

static void attend_part(void *context, int64_t task) {
    const Softmax *softmax = context;
    const Attend *attend = softmax->attend;
    const Query *query = softmax->query;
    Part *part = softmax->part + task;
    int64_t members = query->members, count = part->stop - part->first, stride = ROUND_UP(count, 16);
    int64_t wide = ROUND_UP(query->width, LANES);
    float *logits = kiv_workspace(2, ((members + 1) * stride + (members + 4) * wide + (AT_ONCE + 1) * softmax->wide) * 4);
    OR_FAIL(logits)
    float *room = logits + members * stride, *kept = room + (members + 4) * wide, *value = kept + stride, *more = 0;
    int64_t more_stride = 0;
    if (part->kind >= 0) {
        run_logits(softmax, part, logits, stride, room);
    } else if (part->kind == TAIL) {
        int64_t pages = attend->index->pages;
        for (int64_t m = 0; m < members; m++)
            memcpy(logits + m * stride, attend->tail + (part->head * members + m) * pages + part->first, count * 4);
        if (softmax->off) more = softmax->off + part->head * members * pages + part->first, more_stride = pages;
    } else {
        const Found *found = attend->found;
        const int32_t *chosen = found->chosen + part->head * found->selected + part->first;
        for (int64_t m = 0; m < members; m++) {
            const float *raw = found->raw + (part->head * members + m) * found->stride;
            for (int64_t i = 0; i < count; i++) logits[m * stride + i] = chosen[i] < 0 ? -INFINITY : raw[chosen[i]];
            cap(logits + m * stride, count, query->softcap);
        }
        if (softmax->weight)
            more = softmax->weight + part->head * members * found->selected + part->first, more_stride = found->selected;
    }
    memset(part->sum, 0, members * softmax->wide * sizeof(float));
    if (more) memset(part->shift, 0, members * softmax->wide * sizeof(float));
    for (int64_t m = 0; m < members; m++) {
        float *row = logits + m * stride, most = largest(row, count);
        part->most[m] = most;
        if (!attend->finite) memcpy(kept, row, count * sizeof(float));
        part->total[m] = exponentials(row, count, most < NONE ? NONE : most);
        if (!attend->finite) /* a weight below 0 tells what is not attended from what weighs nothing */
            for (int64_t i = 0; i < count; i++)
                if (kept[i] == -INFINITY) row[i] = -1.0f;
    }
    weigh(softmax, part, logits, more, more_stride, stride, value);
}

/* Weights of the shift (SPEC 5.4) of one head: over the selected tokens, and the same by page. */
static void shift_weights(void *context, int64_t head) {
    const Softmax *softmax = context;
    const Attend *attend = softmax->attend;
    const Found *found = attend->found;
    int64_t members = softmax->query->members, selected = found->selected, pages = attend->index->pages, real = 0;
    const int32_t *chosen = found->chosen + head * selected, *at = found->at + head * found->stride;
    int64_t room = ROUND_UP(selected, LANES);
    float *fade = kiv_workspace(2, 2 * room * sizeof(float)), *one = fade + room;
    double middle = 0.0;
    OR_FAIL(fade)
    memset(fade, 0, 2 * room * sizeof(float));
    for (int64_t i = 0; i < selected; i++) real += chosen[i] >= 0;
    for (int64_t m = 0; m < members; m++) {
        const float *raw = found->raw + (head * members + m) * found->stride;
        for (int64_t i = 0; i < real; i++) one[i] = raw[chosen[i]];
        V most = splat(largest(one, real));
        /* In logarithms, since the sum of a token that no member likes is too small for a float. */
        for (int64_t i = 0; i < real; i += LANES) {
            V more = load(one + i) - most;
            store(fade + i, m ? log_of_both(load(fade + i), more) : more);
        }
    }
    for (int64_t i = 0; i < real; i++) middle += fade[i];
    middle /= real ? real : 1;
    for (int64_t i = 0; i < real; i += LANES) /* log 1 / (1 + e^x), x = 4 (log S - its mean) */
        store(fade + i, -log_of_both(splat(POWER) * (load(fade + i) - splat((float)middle)), splat(0.0f)));
    for (int64_t m = 0; m < members; m++) {
        const float *raw = found->raw + (head * members + m) * found->stride;
        float *weight = softmax->weight + (head * members + m) * selected, *off = softmax->off + (head * members + m) * pages;
        memset(off, 0, pages * sizeof(float));
        for (int64_t i = 0; i < real; i++) one[i] = raw[chosen[i]];
        cap(one, real, softmax->query->softcap);
        for (int64_t i = 0; i < real; i++) one[i] += fade[i];
        float most = largest(one, real), total = exponentials(one, real, most < NONE ? NONE : most);
        float share = total > 0.0f ? 1.0f / total : 0.0f;
        for (int64_t i = 0; i < selected; i++) weight[i] = i < real ? one[i] * share : 0.0f;
        for (int64_t i = 0, page = 0; i < real; i++) {
            while (at[chosen[i]] >= (page + 1) * softmax->attend->index->tokens) page++;
            off[page] += weight[i];
        }
    }
}

/* Merge the parts of one member, and write its output and masses. */
static void merge(void *context, int64_t row) {
    const Softmax *softmax = context;
    const Attend *attend = softmax->attend;
    const Query *query = softmax->query;
    int64_t head = row / query->members, m = row % query->members, wide = softmax->wide, each = softmax->parts / query->heads;
    const Part *part = softmax->part + head * each;
    float most = query->sink ? query->sink[row] : -INFINITY, exact, estimated = 0.0f;
    float *sum = kiv_workspace(2, 2 * wide * sizeof(float)), *shift = sum + wide;
    OR_FAIL(sum)
    memset(sum, 0, 2 * wide * sizeof(float));
    for (int64_t p = 0; p < each; p++) most = part[p].most[m] > most ? part[p].most[m] : most;
    if (most < NONE) most = NONE;
    exact = query->sink ? expf(query->sink[row] - most) : 0.0f;
    for (int64_t p = 0; p < each; p++) {
        float scale = expf(part[p].most[m] - most), mass = part[p].total[m] * scale;
        if (part[p].kind == TAIL) estimated += mass;
        else exact += mass;
        if (part[p].most[m] > -INFINITY) add_value(sum, part[p].sum + m * wide, scale, wide);
        if (part[p].shift) add_value(shift, part[p].shift + m * wide, part[p].kind == TAIL ? -0.5f : 0.5f, wide);
    }
    float all = exact + estimated, share = all > 0.0f ? 1.0f / all : 0.0f;
    int64_t group = m / attend->queries, t = m % attend->queries, groups = query->members / attend->queries;
    int64_t to = (head * groups + group) * attend->out_head + t * attend->value_width;
    for (int64_t d = 0; d < attend->value_width; d++) {
        float moved = estimated > 0.0f && softmax->weight ? estimated * share * shift[d] : 0.0f;
        narrow(sum[d] * share + moved, attend->out_kind, attend->out, to + d);
    }
    if (attend->most) attend->most[row] = most, attend->total[row] = all;
    attend->estimated[row] = estimated * share;
}

static int64_t cut(Part *part, int kind, int64_t head, int64_t count, int64_t size) {
    int64_t parts = 0;
    for (int64_t first = 0; first < count; first += size, parts++)
        if (part) part[parts] = (Part){kind, head, first, first + size < count ? first + size : count, 0, 0, 0, 0};
    return parts;
}

static int64_t parts_of_head(const Attend *attend, Part *part, int64_t head) {
    int64_t parts = 0;
    for (int64_t r = 0; r < attend->runs; r++)
        parts += cut(part ? part + parts : 0, (int)r, head, attend->run[r].count, part_tokens(attend->run[r].count));
    if (attend->found) parts += cut(part ? part + parts : 0, SELECTED, head, attend->found->selected, PART_TOKENS);
    if (attend->tail)
        parts += cut(part ? part + parts : 0, TAIL, head, attend->index->pages, part_tokens(attend->index->pages));
    return parts;
}

static int attend(const Query *query, const Attend *asked) {
    if (asked->tail && tail(asked->index, query, asked->estimates, asked->found, asked->tail)) return 1;
    int64_t wide = ROUND_UP(asked->value_width, LANES), each = parts_of_head(asked, 0, 0), parts = each * query->heads;
    int64_t members = query->members, selected = asked->tail ? asked->found->selected : 0;
    int64_t rows = query->heads * members, pages = asked->tail ? asked->index->pages : 0;
    int64_t floats = parts * members * (2 + 2 * wide) + rows * (selected + pages);
    Part *part = kiv_workspace(3, parts * sizeof(Part) + floats * sizeof(float));
    if (!part) return 1;
    float *room = (float *)(part + parts);
    Softmax softmax = {query, asked, part, parts, wide, 0, 0};
    if (selected) {
        softmax.weight = room;
        softmax.off = room + rows * selected;
        room += rows * (selected + pages);
    }
    for (int64_t head = 0; head < query->heads; head++) parts_of_head(asked, part + head * each, head);
    for (int64_t p = 0; p < parts; p++) {
        part[p].most = room;
        part[p].total = room + members;
        part[p].sum = room + 2 * members;
        part[p].shift = selected && part[p].kind < 0 ? part[p].sum + members * wide : 0;
        room += members * (2 + (part[p].shift ? 2 : 1) * wide);
    }
    if (selected && kiv_run(shift_weights, &softmax, query->heads, query->threads)) return 1;
    if (kiv_run(attend_part, &softmax, parts, query->threads)) return 1;
    return kiv_run(merge, &softmax, rows, query->threads);
}

#endif
