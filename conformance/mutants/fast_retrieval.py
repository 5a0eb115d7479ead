"""Faults in what the tiered implementation retrieves: estimates, candidates, widening, and what may be missed."""

from __future__ import annotations

from .source import Fault, clause

TESTS = "packages/kiv-fast/tests/test_"
PARTS = "fast-small-parts"
"""Computes by the operations in PyTorch, which `fast` leaves to the compiled ones."""

FAULTS = [
    Fault(
        "the missed bound is rounded to the nearest",
        "kiv_fast.retrieval.bound:round_up",
        "torch.where(short.to(share.dtype) < share, torch.nextafter(short, torch.full_like(short, torch.inf)), short)",
        "short",
        (f"{TESTS}parts.py::test_a_share_is_never_rounded_down",),
    ),
    Fault(
        "the missed bound without the rounding of products",
        "kiv_fast.ops.bound:_lost",
        "+ 16) * reach.to(WIDE)",
        "+ 16) * 0 * reach.to(WIDE)",
        ("packages/kiv-fast/tests/test_missed_bound.py",),
    ),
    Fault(
        "a limit on missed mass is rounded to float32",
        "kiv_fast.retrieval.bound:bounded",
        "(missed <= limit)",
        "(round_up(missed) <= limit)",
        (f"{TESTS}parts.py::test_limits_that_float32_does_not_hold",),
    ),
    Fault(
        "of equal scores the last ones are taken",
        "kiv_fast.ops.ranking:_picked",
        "equal.cumsum(axis=1) <= places",
        "equal[:, ::-1].cumsum(axis=1)[:, ::-1] <= places",
        (f"{TESTS}ranking.py",),
    ),
    Fault(
        "no last partial chunk of pages",
        "kiv_fast.ops.estimates:Estimates.__init__",
        "range(0, index.pages, step)",
        "range(0, max(1, index.pages - index.pages % step), step)",
        clause("4.4", PARTS),
    ),
    Fault(
        "both codes of a byte are its upper half",
        "kiv_fast.ops.estimates:Estimates._numbers",
        "[words, words >> 4]",
        "[words >> 4, words >> 4]",
        clause("4.2", PARTS),
    ),
    Fault(
        "every chunk of pages has a maximum of its own",
        "kiv_fast.ops.estimates:Estimates.scores",
        "and len(self.chunks) > 1",
        "and False",
        clause("4.3", PARTS),
    ),
    Fault(
        "one maximum for all members of a group",
        "kiv_fast.ops.ranking:group_scores",
        "(scores.amax(dim=2, keepdim=True) if",
        "(scores.amax(dim=(1, 2), keepdim=True) if",
        clause("4.3", PARTS),
    ),
    Fault(
        "no last partial chunk of candidates",
        "kiv_fast.ops.torch:TorchOps.scores",
        "pieces(places, step, 1)",
        "pieces(places[:, : max(step, places.shape[1] - places.shape[1] % step)], step, 1)",
        (f"{TESTS}parts.py::test_keys_of_candidates_are_read_in_chunks",),
    ),
    Fault(
        "invalid tokens are candidates where valid ones are few",
        "kiv_fast.retrieval.candidates:find",
        "min(config.candidate_tokens, view.tokens)",
        "config.candidate_tokens",
        clause("2.4", PARTS),
    ),
    Fault(
        "the missed bound leaves out how far codes are from keys",
        "kiv_fast.ops.bound:_slack",
        "return spread.to(WIDE) + less",
        "return 0 * spread.to(WIDE) + less",
        clause("6.2", PARTS),
    ),
    Fault(
        "the missed bound leaves out how weights are rounded",
        "kiv_fast.ops.bound:_slack",
        "return spread.to(WIDE) + less",
        "return spread.to(WIDE)",
        clause("6.2", PARTS),
    ),
    Fault(
        "the missed bound takes queries with their signs",
        "kiv_fast.ops.bound:_asked",
        "queries.members.abs()",
        "queries.members",
        clause("6.2", PARTS),
    ),
    Fault(
        "the missed bound leaves out candidates that were not selected",
        "kiv_fast.ops.bound:missed_share",
        "torch.logaddexp(torch.logsumexp(left, dim=2), unread)",
        "unread",
        clause("6.2", PARTS),
    ),
    Fault(
        "what is always attended is held without learned sinks",
        "kiv_fast.ops.bound:log_held",
        "queries.sink_logits is not None",
        "False",
        clause("6.2", PARTS),
    ),
    Fault(
        "a head that needs tokens takes 4 C at once",
        "kiv_fast.retrieval.bound:bounded",
        "in FACTORS[1:]",
        "in FACTORS[3:]",
        clause("6.3"),
    ),
    Fault(
        "a head never streams that needs more than 4 C",
        "kiv_fast.retrieval.bound:bounded",
        "one is None for one in taken",
        "False for _ in taken",
        clause("6.3"),
    ),
    Fault(
        "tokens that are taken whole have the scores of the known ones first",
        "kiv_fast.ops.torch:TorchOps.take",
        "[:, :, order]",
        "",
        clause("6.3", PARTS),
    ),
    Fault(
        "a streamed head counts the bytes of its candidates",
        "kiv_fast.retrieval.block:_rows_read",
        ".masked_fill(streamed, view.tokens)",
        "",
        clause("6.3"),
    ),
    Fault(
        "candidates are never doubled",
        "kiv_fast.retrieval.candidates:find",
        "if found.late and",
        "if False and",
        clause("4.9"),
    ),
    Fault(
        "candidates are doubled for what is late in any order",
        "kiv_fast.ops.torch:TorchOps.select",
        "min(most, first)",
        "most",
        clause("4.9", PARTS),
    ),
    Fault(
        "late is what is among the later positions",
        "kiv_fast.ops.torch:TorchOps.select",
        "early.gather(1, chosen)",
        "(chosen < first)",
        clause("4.9", PARTS),
    ),
    Fault(
        "a doubled head keeps its first selection",
        "kiv_fast.ops.torch:TorchOps.widen",
        "chosen = top_set(group_scores(new, index.group), chosen.shape[1])",
        "pass",
        clause("4.9", PARTS),
    ),
    Fault(
        "a doubled head reads the keys of another",
        "kiv_fast.cold:Cold.places",
        "self._begin[heads]",
        "self._begin[heads - heads[0]]",
        clause("4.9", PARTS),
    ),
    Fault(
        "keys of doubled heads are not counted",
        "kiv_fast.ops.torch:TorchOps.widen",
        "found.keys + more.numel()",
        "found.keys",
        clause("4.9", PARTS),
    ),
    Fault(
        "a report does not say which heads were doubled",
        "kiv_fast.trace:BlockTrace.report",
        "None if one is None else one.widened",
        "None",
        clause("4.9"),
    ),
]
