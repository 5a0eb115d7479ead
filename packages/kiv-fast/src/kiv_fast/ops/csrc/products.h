/* Products of queries with stored keys, and weighed sums of stored values: rows are read in the dtype they have. */
#ifndef KIV_PRODUCTS_H
#define KIV_PRODUCTS_H

#include "rows.h"

#define ROWS 4
#define COLUMNS 4 /* vectors of a value whose sums are in registers at once */

/* Call `how(..., kind, members)` with both as constants, so that the loops in it are without branches. */
#define FOR_KIND(how, kind, ...) \
    switch (kind) { \
    case F32: how(__VA_ARGS__, F32); break; \
    case BF16: how(__VA_ARGS__, BF16); break; \
    default: how(__VA_ARGS__, F16); \
    }

/* The same with the number of members, of those that are left as many as there are registers for. */
#define MEMBERS (LANES == 16 ? 4 : 2)
#define FOR_MEMBERS(how, left, kind, ...) \
    switch ((left) < MEMBERS ? (left) : MEMBERS) { \
    case 1: FOR_KIND(how, kind, __VA_ARGS__, 1); break; \
    case 2: FOR_KIND(how, kind, __VA_ARGS__, 2); break; \
    case 3: FOR_KIND(how, kind, __VA_ARGS__, 3); break; \
    default: FOR_KIND(how, kind, __VA_ARGS__, 4); \
    }

__attribute__((always_inline)) static inline void some_products(const float *asked, int64_t wide, const void *const *row,
                                                                int64_t count, float *out, int64_t stride,
                                                                const int members, const int kind) {
    for (int64_t first = 0; first < count; first += ROWS, row += ROWS) {
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
            memcpy(out + m * stride + first, &all, sizeof all);
        }
    }
}

/* Products of M queries, rows of `wide` floats, with keys of `width` numbers at the first `count` of `row`, which goes on to
   a multiple of four of them: rows of `out`, `stride` apart, do too. `room` is for four keys. */
static void products(const float *asked, int64_t members, int64_t wide, const void *const *row, int64_t count, int64_t width,
                     int64_t kind, float *room, float *out, int64_t stride) {
    if (width != wide) {
        for (int64_t first = 0; first < count; first += ROWS) {
            const void *whole[ROWS];
            for (int i = 0; i < ROWS; i++) {
                widen(row[first + i], width, kind, room + i * wide);
                whole[i] = room + i * wide;
            }
            products(asked, members, wide, whole, ROWS, wide, F32, room, out + first, stride);
        }
        return;
    }
    for (int64_t m = 0; m < members; m += MEMBERS, asked += MEMBERS * wide, out += MEMBERS * stride) {
        FOR_MEMBERS(some_products, members - m, kind, asked, wide, row, count, out, stride);
    }
}

/* Row after row, as they lie, with the sums of some columns in registers. */
__attribute__((always_inline)) static inline void some_columns(float *sum, int64_t wide, const void *const *row, int64_t count,
                                                               int64_t from, const float *weights, int64_t stride,
                                                               const int vectors, const int members, const int kind) {
    V all[4][COLUMNS];
#pragma GCC unroll 4
    for (int m = 0; m < members; m++)
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++) all[m][c] = load(sum + m * wide + from + c * LANES);
    for (int64_t i = 0; i < count; i++) {
        V value[COLUMNS];
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++) value[c] = several(row[i], from + c * LANES, kind);
#pragma GCC unroll 4
        for (int m = 0; m < members; m++) {
            V weight = splat(weights[m * stride + i]);
#pragma GCC unroll 4
            for (int c = 0; c < vectors; c++) all[m][c] += weight * value[c];
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < members; m++)
#pragma GCC unroll 4
        for (int c = 0; c < vectors; c++) store(sum + m * wide + from + c * LANES, all[m][c]);
}

__attribute__((always_inline)) static inline void some_values(float *sum, int64_t wide, const void *const *row, int64_t count,
                                                              const float *weights, int64_t stride, const int members,
                                                              const int kind) {
    int64_t d = 0;
    for (; d + COLUMNS * LANES <= wide; d += COLUMNS * LANES)
        some_columns(sum, wide, row, count, d, weights, stride, COLUMNS, members, kind);
    for (; d < wide; d += LANES) some_columns(sum, wide, row, count, d, weights, stride, 1, members, kind);
}

/* Add values, weighed, to the sums of M members, rows of `wide`; `wide` numbers of each value are read. */
static void add_values(float *sum, int64_t members, int64_t wide, const void *const *row, int64_t count, int64_t kind,
                       const float *weights, int64_t stride) {
    for (int64_t m = 0; m < members; m += MEMBERS, sum += MEMBERS * wide, weights += MEMBERS * stride) {
        FOR_MEMBERS(some_values, members - m, kind, sum, wide, row, count, weights, stride);
    }
}

#endif
