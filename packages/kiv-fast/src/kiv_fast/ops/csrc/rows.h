/* Stored rows: where they are, and their numbers, of 16 bits or 32, as floats. */
#ifndef KIV_ROWS_H
#define KIV_ROWS_H

#include "vectors.h"

static inline float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023, bits;
    float number;
    if (exponent == 0) { /* zeros and denormal numbers: exact in float32 */
        number = (float)fraction * 0x1p-24f;
        return sign ? -number : number;
    }
    bits = sign | (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | fraction << 13;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* A vector of stored numbers from the i-th on, as floats. */
static inline V several(const void *from, int64_t i, int64_t kind) {
    VH narrow;
    V all;
    if (kind == F32) return load((const float *)from + i);
    memcpy(&narrow, (const uint16_t *)from + i, sizeof narrow);
    if (kind == BF16) return upper_halves(narrow);
#ifdef __F16C__
    typedef short S8 __attribute__((vector_size(16)));
    typedef float V8 __attribute__((vector_size(32)));
    S8 part[LANES / 8];
    V8 wide[LANES / 8];
    memcpy(part, &narrow, sizeof narrow);
    for (int h = 0; h < LANES / 8; h++) wide[h] = (V8)__builtin_ia32_vcvtph2ps256(part[h]);
    memcpy(&all, wide, sizeof all);
#else
    for (int lane = 0; lane < LANES; lane++) all[lane] = half_to_float(narrow[lane]);
#endif
    return all;
}

/* A row of n numbers as floats, filled up with zeros to whole vectors. */
static inline void widen(const void *from, int64_t n, int64_t kind, float *to) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, several(from, i, kind));
    if (i < n) {
        uint8_t rest[64] = {0};
        int size = kind == F32 ? 4 : 2;
        memcpy(rest, (const uint8_t *)from + i * size, (n - i) * size);
        store(to + i, several(rest, 0, kind));
    }
}

/* A float as it is stored, rounded to nearest. */
static inline void narrow(float number, int64_t kind, void *to, int64_t i) {
    if (kind == F32) {
        ((float *)to)[i] = number;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    uint16_t *half = (uint16_t *)to + i;
    if (kind == BF16) {
        *half = size > 0x7f800000 ? 0x7fc0 | sign : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    } else if (size >= 0x47800000) { /* at least 65536, or not a number */
        *half = sign | (size > 0x7f800000 ? 0x7e00 : 0x7c00);
    } else if (size < 0x38800000) { /* denormal: units of 2^-24 */
        float scaled;
        memcpy(&scaled, &size, sizeof scaled);
        *half = sign | (uint16_t)rintf(scaled * 0x1p24f);
    } else {
        *half = sign | (uint16_t)((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13);
    }
}

/* Ask for rows that lie anywhere before they are needed: the processor foresees those that lie together, and no others. */
#define ROWS_AHEAD 32

static inline const void *row_of(const Rows *rows, int64_t head, int64_t i);

static inline void ask_row(const Rows *rows, int64_t head, int64_t i) {
    const char *row = row_of(rows, head, i);
    int64_t nbytes = rows->width * (rows->kind == F32 ? 4 : 2);
    for (int64_t byte = 0; byte < nbytes; byte += 64) __builtin_prefetch(row + byte);
}

/* Where n rows from the first on are, in whose place that one stands from the `have`-th on. Rows of a page lie together,
   which saves divisions. */
static inline void rows_from(const Rows *rows, int64_t head, int64_t first, int64_t have, int64_t n, const void **row) {
    int64_t nbytes = rows->width * (rows->kind == F32 ? 4 : 2);
    const char *at = row_of(rows, head, first);
    int together = !rows->page || first % rows->tokens + have <= rows->tokens;
    for (int64_t j = 0; j < n; j++) row[j] = j >= have ? at : together ? at + j * nbytes : row_of(rows, head, first + j);
}

static inline const void *row_of(const Rows *rows, int64_t head, int64_t i) {
    int64_t at = rows->page ? ((rows->page[i / rows->tokens] * rows->heads + head) * rows->tokens + i % rows->tokens) *
                                  rows->width
                            : head * rows->head + i * rows->width;
    return (const uint8_t *)rows->data + at * (rows->kind == F32 ? 4 : 2);
}

#endif
