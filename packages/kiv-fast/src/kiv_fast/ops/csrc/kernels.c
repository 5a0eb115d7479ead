/* The operations, compiled once for each set of instructions: KIV_SUFFIX tells which. */
#include "attend.h"
#include "retrieve.h"

#define JOIN(a, b) a##b
#define NAME(a, b) JOIN(a, b)

const Operations NAME(kiv_operations_, KIV_SUFFIX) = {estimate, best, select_tokens, tail, attend};
