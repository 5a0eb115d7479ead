"""Faults in the compiled softmax, tail and missed bound, and in what reads rows for all operations."""

from __future__ import annotations

from .compiled import CompiledFault
from .source import clause

OPS = "packages/kiv-fast/tests/test_ops.py::test_"


def ops(test: str) -> tuple[str, ...]:
    """Name one of the tests that compare the compiled operations with those in PyTorch."""
    return (f"{OPS}{test}",)


FAULTS = [
    CompiledFault(
        "exponentials of large numbers are any number, by AVX-512",
        "functions.h",
        "smaller(splat(88.0f), x)",
        "x",
        ops("a_token_far_above_the_guessed_top_of_one_member"),
        "avx512",
    ),
    CompiledFault(
        "rows of one page go on behind its end",
        "rows.h",
        "first % rows->tokens + have <= rows->tokens",
        "1",
        clause("4.1"),
    ),
    CompiledFault(
        "what a tile weighs is a share",
        "attend.h",
        "attend->total[row] = all",
        "attend->total[row] = share",
        ("packages/kiv-fast/tests/test_streaming.py::test_few_queries_attend_tile_by_tile",),
    ),
    CompiledFault(
        "nothing far above a sum hides the sum",
        "tail.h",
        "base = pick(factor > splat(0.0f), base, splat(NONE));",
        "",
        ops("a_page_far_below_a_wrong_estimate"),
    ),
    CompiledFault(
        "compiled: candidates count in the tail by their estimates too",
        "tail.h",
        "others[i] = same - 1;",
        "others[i] = UINT32_MAX;",
        clause("5.2"),
    ),
    CompiledFault(
        "compiled: selected tokens count in the tail of their page too",
        "tail.h",
        "weight[chosen[i]] = 0.0f;",
        "(void)weight;",
        clause("5.2"),
    ),
    CompiledFault(
        "a soft cap loses the sign of what it caps",
        "functions.h",
        "(VI)far | ((VI)x & INT32_MIN)",
        "(VI)far",
        clause("8.1"),
    ),
    CompiledFault(
        "numbers of bfloat16 are cut off",
        "rows.h",
        "(bits + 0x7fff + (bits >> 16 & 1)) >> 16",
        "bits >> 16",
        ops("outputs_are_rounded_to_nearest"),
    ),
    CompiledFault(
        "numbers of float16 are cut off",
        "rows.h",
        "0x38000000 + 0xfff + (size >> 13 & 1)",
        "0x38000000",
        ops("outputs_are_rounded_to_nearest"),
    ),
    CompiledFault(
        "what was selected by far weighs in the shift",
        "attend.h",
        "one[i] += fade[i]",
        "(void)fade",
        clause("5.4"),
    ),
    CompiledFault(
        "the mean values are added to the shift",
        "attend.h",
        "part[p].kind == TAIL ? -0.5f : 0.5f",
        "0.5f",
        clause("5.4"),
    ),
    CompiledFault(
        "sink logits are left out",
        "attend.h",
        "exact = query->sink ? expf(query->sink[row] - most) : 0.0f",
        "exact = 0.0f",
        clause("8.2"),
    ),
    CompiledFault(
        "compiled: a query does not see its own token",
        "attend.h",
        "- run->first + 1 - part->first",
        "- run->first - part->first",
        clause("5.1"),
    ),
    CompiledFault(
        "invalid tokens are attended",
        "attend.h",
        "if (run->valid)",
        "if (0)",
        clause("2.4"),
    ),
    CompiledFault(
        "compiled: an infinite value is multiplied by 0 where it is not seen",
        "attend.h",
        "if (kept[i] == -INFINITY) row[i] = -1.0f;",
        "if (0) row[i] = -1.0f;",
        clause("2.5"),
    ),
    CompiledFault(
        "no last partial group of values",
        "attend.h",
        "count - first < AT_ONCE ? count - first : AT_ONCE",
        "count - first < AT_ONCE ? 0 : AT_ONCE",
        clause("5.1"),
    ),
    CompiledFault(
        "the first columns of a value stand for the others",
        "products.h",
        "several(row[i], from + c * LANES, kind)",
        "several(row[i], c * LANES, kind)",
        ops("operations"),
    ),
    CompiledFault(
        "parts are merged without regard to their largest logits",
        "attend.h",
        "expf(part[p].most[m] - most)",
        "1.0f",
        clause("5.1"),
    ),
    CompiledFault(
        "the tail counts as exact mass",
        "attend.h",
        "estimated += mass",
        "exact += mass",
        clause("6.1"),
    ),
    CompiledFault(
        "compiled: the missed bound leaves out how far codes are from keys",
        "bound.h",
        "found[0] = spread;",
        "found[0] = 0.0f;",
        clause("6.2"),
    ),
    CompiledFault(
        "compiled: the missed bound leaves out how weights are rounded",
        "bound.h",
        "found[1] = less;",
        "found[1] = 0.0f;",
        clause("6.2"),
    ),
    CompiledFault(
        "the missed bound leaves out the rounding of products",
        "bound.h",
        "+ 32.0) * magnitude +",
        "+ 32.0) * 0.0f * magnitude +",
        ("packages/kiv-fast/tests/test_missed_bound.py::test_the_bound_holds_whatever_the_order_of_a_sum",),
    ),
    CompiledFault(
        "what is far below its page's best estimate weighs nothing",
        "tail.h",
        "if (out[page] < expf(-FAR) &&",
        "if (out[page] < 0.0f &&",
        ops("heads_that_use_other_channels"),
    ),
    CompiledFault(
        "the missed bound counts selected tokens as left out",
        "bound.h",
        "        left[one] = -INFINITY;\n",
        "",
        clause("6.2"),
    ),
    CompiledFault(
        "what is listed is missed with any candidates",
        "bound.h",
        "weight * missed->estimates->sum[row * pages + p] * expf(base - sums[p])",
        "weight",
        ops("operations"),
    ),
    CompiledFault(
        "what is known of pages is that of the first head",
        "bound.h",
        "missed->slack += 3 * rows * index->pages",
        "missed->slack += 0 * rows * index->pages",
        ops("operations"),
    ),
    CompiledFault(
        "nothing is left of candidates that were not selected",
        "tail.h",
        "every ? 0 : candidates",
        "0",
        ops("operations"),
    ),
    CompiledFault(
        "candidates that weigh nothing beside another page's are not there",
        "tail.h",
        "pick(there, larger(all, splat(NONE)), all)",
        "all",
        clause("2.5"),
    ),
    CompiledFault(
        "the missed bound of a head by the channels of the first",
        "bound.h",
        "index->channels += head *",
        "index->channels += 0 *",
        ops("heads_that_use_other_channels"),
    ),
]
