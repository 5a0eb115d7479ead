/* Products of queries with stored keys, and weighed sums of stored values: rows are read in the dtype they have. */
#ifndef KIV_PRODUCTS_H
#define KIV_PRODUCTS_H

#include "vectors.h"

#define ROWS 4
#define VALUES 8

/* Call `how(..., kind, members)` with both as constants, so that the loops in it are without branches. */
#define FOR_KIND(how, kind, ...) \
    switch (kind) { \
    case F32: how(__VA_ARGS__, F32); break; \
    case BF16: how(__VA_ARGS__, BF16); break; \
    default: how(__VA_ARGS__, F16); \
    }

__attribute__((always_inline)) static inline void some_products(const float *asked, int64_t wide, const void *const row[ROWS],
                                                                float *out, int64_t stride, const int members,
                                                                const int kind) {
    V sum[4][ROWS];
#pragma GCC unroll 4
    for (int m = 0; m < members; m++)
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++) sum[m][i] = splat(0.0f);
    for (int64_t d = 0; d < wide; d += LANES) {
        V key[ROWS];
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++) key[i] = several(row[i], d, kind);
#pragma GCC unroll 4
        for (int m = 0; m < members; m++) {
            V part = load(asked + m * wide + d);
#pragma GCC unroll 4
            for (int i = 0; i < ROWS; i++) sum[m][i] += part * key[i];
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < members; m++) {
        V4 all = sums_of(sum[m][0], sum[m][1], sum[m][2], sum[m][3]);
        memcpy(out + m * stride, &all, sizeof all);
    }
}

/* Products of M queries, rows of `wide` floats, with four keys of `width` numbers: rows of `out`, `stride` apart. `room`
   is for four rows. */
static void products(const float *asked, int64_t members, int64_t wide, const void *const key[ROWS], int64_t width,
                     int64_t kind, float *room, float *out, int64_t stride) {
    const void *row[ROWS];
    const int at_once = LANES == 16 ? 4 : 2; /* as many as there are registers for */
    for (int i = 0; i < ROWS; i++) {
        row[i] = key[i];
        if (width == wide) continue;
        widen(key[i], width, kind, room + i * wide);
        row[i] = room + i * wide;
    }
    if (width != wide) kind = F32;
    for (int64_t m = 0; m < members; m += at_once, asked += at_once * wide, out += at_once * stride) {
        switch (members - m < at_once ? members - m : at_once) {
        case 1: FOR_KIND(some_products, kind, asked, wide, row, out, stride, 1); break;
        case 2: FOR_KIND(some_products, kind, asked, wide, row, out, stride, 2); break;
        case 3: FOR_KIND(some_products, kind, asked, wide, row, out, stride, 3); break;
        default: FOR_KIND(some_products, kind, asked, wide, row, out, stride, 4);
        }
    }
}

__attribute__((always_inline)) static inline void some_values(float *sum, int64_t members, int64_t wide,
                                                              const void *const row[VALUES], const float *weights,
                                                              int64_t stride, const int kind) {
    for (int64_t d = 0; d < wide; d += LANES) {
        V value[VALUES];
#pragma GCC unroll 8
        for (int i = 0; i < VALUES; i++) value[i] = several(row[i], d, kind);
        for (int64_t m = 0; m < members; m++) {
            const float *weight = weights + m * stride;
            V all = load(sum + m * wide + d), more = splat(0.0f);
#pragma GCC unroll 8
            for (int i = 0; i < VALUES; i += 2) {
                all += splat(weight[i]) * value[i];
                more += splat(weight[i + 1]) * value[i + 1];
            }
            store(sum + m * wide + d, all + more);
        }
    }
}

/* Add eight values, weighed, to the sums of M members, rows of `wide`; `wide` numbers of each value are read. */
static void add_values(float *sum, int64_t members, int64_t wide, const void *const row[VALUES], int64_t kind,
                       const float *weights, int64_t stride) {
    FOR_KIND(some_values, kind, sum, members, wide, row, weights, stride);
}

#endif
