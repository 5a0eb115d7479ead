"""Faults in the compiled operations, one for each rule that csrc has: those of ranking here, the others beside."""

from __future__ import annotations

from . import fast_attention
from .compiled import CompiledFault, best_level, build
from .fast_attention import ops
from .source import clause

EVERY = [
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
        ops("of_equal_scores_the_first_are_taken"),
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
    *fast_attention.FAULTS,
]
"""Those in the code of one set of instructions are for machines that have them."""

LEVELS = list(build().LEVELS)
FAULTS = [fault for fault in EVERY if LEVELS.index(fault.level or "plain") <= LEVELS.index(best_level())]
