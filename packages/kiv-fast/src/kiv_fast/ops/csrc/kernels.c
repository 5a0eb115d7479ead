/* The operations, compiled once for each set of instructions: KIV_SUFFIX tells which. */
#include "bound.h"

#define NUMBERS_AT_ONCE (1 << 16)

typedef struct {
    const void *numbers;
    int64_t count, kind;
    _Atomic int odd;
} Look;

/* Infinity and NaN have all bits of the exponent. */
static void look_at(void *context, int64_t task) {
    Look *look = context;
    int64_t stop = (task + 1) * NUMBERS_AT_ONCE, odd = 0;
    if (stop > look->count) stop = look->count;
    const uint32_t *wide = look->numbers, mask = 0x7f800000;
    const uint16_t *half = look->numbers, bits = look->kind == BF16 ? 0x7f80 : 0x7c00;
    if (look->kind == F32)
        for (int64_t i = task * NUMBERS_AT_ONCE; i < stop; i++) odd += (wide[i] & mask) == mask;
    else
        for (int64_t i = task * NUMBERS_AT_ONCE; i < stop; i++) odd += (half[i] & bits) == bits;
    if (odd) look->odd = 1;
}

static int finite_numbers(const void *numbers, int64_t count, int64_t kind, int32_t threads) {
    Look look = {numbers, count, kind, 0};
    kiv_run(look_at, &look, (count + NUMBERS_AT_ONCE - 1) / NUMBERS_AT_ONCE, threads);
    return !look.odd;
}

static int append(const Copy *copy, int64_t copies) {
    int odd = 0;
    for (int64_t c = 0; c < copies; c++, copy++)
        for (int64_t b = 0; b < copy->batch; b++)
            for (int64_t h = 0; h < copy->heads; h++) {
                uint8_t *to = (uint8_t *)copy->to + b * copy->to_batch + h * copy->to_head;
                const uint8_t *from = (const uint8_t *)copy->from + b * copy->from_batch + h * copy->from_head;
                for (int64_t i = 0; i < copy->count; i++)
                    memcpy(to + i * copy->nbytes, from + i * copy->from_token, copy->nbytes);
                int64_t numbers = copy->count * copy->nbytes / (copy->kind == F32 ? 4 : 2);
                odd |= !finite_numbers(to, numbers, copy->kind, 1) << c;
            }
    return odd;
}

#define JOIN(a, b) a##b
#define NAME(a, b) JOIN(a, b)

const Operations NAME(kiv_operations_, KIV_SUFFIX) = {estimate,       best,   select_tokens, attend,
                                                      finite_numbers, append, held,          missed};
