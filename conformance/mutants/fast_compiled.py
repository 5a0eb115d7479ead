"""Faults in the compiled operations, one for each rule that csrc has."""

from __future__ import annotations

from .compiled import CompiledFault, best_level, build
from .source import clause

OPS = "packages/kiv-fast/tests/test_ops.py::test_"


def ops(test: str) -> tuple[str, ...]:
    """Name one of the tests that compare the compiled operations with those in PyTorch."""
    return (f"{OPS}{test}",)


EVERY = [
    CompiledFault(
        "rows of one page go on behind its end",
        "vectors.h",
        "first % rows->tokens + have <= rows->tokens",
        "1",
        ops("operations"),
    ),
    CompiledFault(
        "what a tile weighs is a share",
        "attend.h",
        "attend->total[row] = all",
        "attend->total[row] = share",
        ("packages/kiv-fast/tests/test_streaming.py::test_few_queries_attend_tile_by_tile",),
    ),
    CompiledFault(
        "both codes of a byte are its lower half, on any processor",
        "scan.h",
        "both >> (8 * byte + 4) & 15",
        "both >> 8 * byte & 15",
        clause("4.2"),
        "plain",
    ),
    CompiledFault(
        "both codes of a byte are its lower half, by AVX2",
        "scan.h",
        "_mm256_srli_epi16(both, 4)",
        "both",
        clause("4.2"),
        "avx2",
    ),
    CompiledFault(
        "both codes of a byte are its lower half, by AVX-512",
        "scan.h",
        "_mm512_srli_epi16(both, 4)",
        "both",
        clause("4.2"),
        "avx512",
    ),
    CompiledFault(
        "the second block of sixteen tokens has the codes of the first",
        "scan.h",
        "block + g * group + j * 64",
        "block + j * 64",
        ops("operations"),
        "avx512",
    ),
    CompiledFault(
        "the lower half of weights is dropped",
        "scan.h",
        "weight & 127",
        "weight & 0",
        clause("4.2"),
        "avx2",
    ),
    CompiledFault(
        "the unit of another member",
        "scan.h",
        "splat(asked->unit[m])",
        "splat(asked->unit[0])",
        clause("4.2"),
    ),
    CompiledFault(
        "what the query makes of the base is left out",
        "scan.h",
        " + splat(asked->start[m])",
        "",
        clause("4.4"),
    ),
    CompiledFault(
        "invalid cold tokens are ranked",
        "scan.h",
        "if (index->unseen)",
        "if (0)",
        clause("2.4"),
    ),
    CompiledFault(
        "the largest estimate of a page is one of its first tokens",
        "list.h",
        "page->stride, ROUND_UP(work->index->tokens, TOKENS))",
        "page->stride, TOKENS)",
        ops("operations"),
    ),
    CompiledFault(
        "whatever a guess lists is taken for all that matters",
        "estimate.h",
        "while (!failed && lacking(&work))",
        "while (0)",
        ops("a_sample_that_misleads"),
    ),
    CompiledFault(
        "a list that is long enough is taken for complete",
        "estimate.h",
        "= enough < least;",
        "= count < least;",
        ops("a_top_that_the_sample_does_not_have"),
    ),
    CompiledFault(
        "guessed tops are taken for the right ones",
        "estimate.h",
        ": more * *floor",
        ": *floor",
        ops("a_top_that_the_sample_does_not_have"),
    ),
    CompiledFault(
        "what is listed counts among the others too",
        "list.h",
        "(V)((VI)weight[m] & less)",
        "weight[m]",
        clause("5.2"),
    ),
    CompiledFault(
        "what leaves the list weighs nothing",
        "estimate.h",
        "estimates->sum[place + page] += sum_listed(",
        "(void)sum_listed(",
        ops("operations"),
    ),
    CompiledFault(
        "nothing far above a sum hides the sum",
        "tail.h",
        "base = pick(factor > splat(0.0f), base, splat(NONE));",
        "",
        ops("a_page_far_below_a_wrong_estimate"),
    ),
    CompiledFault(
        "compiled: of equal scores the last ones are taken",
        "ranking.h",
        "for (int64_t i = 0; i < count && taken < n; i++) {\n"
        "        uint32_t key = order(scores[i]);\n"
        "        int equal = key == least && ties > 0;\n"
        "        best[taken] =",
        "for (int64_t i = count - 1; i >= 0 && taken < n; i--) {\n"
        "        uint32_t key = order(scores[i]);\n"
        "        int equal = key == least && ties > 0;\n"
        "        best[n - 1 - taken] =",
        clause("1.3"),
    ),
    CompiledFault(
        "the sum of exponentials for the largest score",
        "select.h",
        "one[k] > score[k] ? one[k] : score[k];",
        "score[k] + one[k];",
        clause("4.3"),
    ),
    CompiledFault(
        "late is what no candidate is",
        "select.h",
        "first = 3 * candidates / 4",
        "first = candidates",
        clause("4.9"),
    ),
    CompiledFault(
        "compiled: candidates are doubled for what is late in any order",
        "select.h",
        "SHARE_LATE * (late - spare)",
        "SHARE_LATE * late",
        clause("4.9"),
    ),
    CompiledFault(
        "a doubled head has the scores of its neighbours",
        "select.h",
        "select->known->stride - 1 - source[k]",
        "select->known->stride - source[k]",
        clause("4.9"),
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
        "vectors.h",
        "(VI)far | ((VI)x & INT32_MIN)",
        "(VI)far",
        clause("8.1"),
    ),
    CompiledFault(
        "numbers of bfloat16 are cut off",
        "vectors.h",
        "(bits + 0x7fff + (bits >> 16 & 1)) >> 16",
        "bits >> 16",
        ops("outputs_are_rounded_to_nearest"),
    ),
    CompiledFault(
        "numbers of float16 are cut off",
        "vectors.h",
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
        "+ 32.0) * reach +",
        "+ 32.0) * 0.0f * reach +",
        clause("6.2"),
    ),
    CompiledFault(
        "the missed bound takes what is far below the best for nothing",
        "bound.h",
        "near ? sums[p] : weighed_anew(missed, query, head, m, p, first, candidate)",
        "sums[p]",
        clause("8.2"),
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
        "the missed bound of a head by the channels of the first",
        "bound.h",
        "index->channels += head *",
        "index->channels += 0 *",
        ops("operations"),
    ),
    CompiledFault(
        "the first rows are not copied",
        "read.h",
        "i = task * COPIES_AT_ONCE; i",
        "i = task * COPIES_AT_ONCE + !task; i",
        ("packages/kiv-fast/tests/test_row_cache.py::test_copies",),
    ),
    CompiledFault(
        "what is not in memory is not read",
        "read.h",
        "reads->done[i] ? reads->nbytes[i] : 0",
        "reads->nbytes[i]",
        ("packages/kiv-fast/tests/test_file_io.py::test_parts_of_any_size",),
    ),
    CompiledFault(
        "a file that ends is read to the end that it should have",
        "read.h",
        "reads->error = got ? errno : EIO;",
        "reads->error = got ? errno : 0;",
        ("packages/kiv-fast/tests/test_file_io.py::test_what_cannot_be_read_is_an_error",),
    ),
    CompiledFault(
        "NaN is a number",
        "kernels.c",
        "(wide[i] & mask) == mask",
        "wide[i] << 1 == mask << 1",
        clause("2.5"),
    ),
]
"""Those in the code of one set of instructions are for machines that have them."""

LEVELS = list(build().LEVELS)
FAULTS = [fault for fault in EVERY if LEVELS.index(fault.level or "plain") <= LEVELS.index(best_level())]
