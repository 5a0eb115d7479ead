"""Faults in the tiered implementation: those that once lived here, those of its modules beside."""

from __future__ import annotations

from . import fast_places, fast_rules
from .source import Fault

REAL = "packages/kiv-fast/tests/test_real_faults.py"


def real(test: str) -> tuple[str, ...]:
    """One test of `REAL`."""
    return (f"{REAL}::test_{test}",)


COST = "packages/kiv-fast/tests/test_cost_contract.py::test_"

FAULTS = [
    Fault(
        "no summaries of the last partial chunk",
        "kiv_fast.cold:Cold.add",
        "range(0, n, self.tuning.summary_chunk)",
        "range(0, max(1, n - n % self.tuning.summary_chunk), self.tuning.summary_chunk)",
        real("every_page_of_a_long_append_is_summarised"),
    ),
    Fault(
        "no last partial tile",
        "kiv_fast.call:_all_tiles",
        "range(0, pages, state.tile_pages)",
        "range(0, max(1, pages - pages % state.tile_pages), state.tile_pages)",
        real("exact_attention_reaches_the_last_tile"),
    ),
    Fault(
        "the first late answer alone is read",
        "kiv_fast.doubt:Doubt.enough",
        "self._answers[1:]",
        "self._answers[1:2]",
        real("the_late_answer_of_every_sequence_is_read"),
    ),
    Fault(
        "no late answer is read",
        "kiv_fast.doubt:Doubt.enough",
        "self._answers[1:]",
        "self._answers[:0]",
        real("the_late_answer_of_every_sequence_is_read"),
    ),
    Fault(
        "room for touched spans one short",
        "kiv_fast.tail:_differences",
        "min(count, 1 + count",
        "min(count, count",
        real("every_touched_span_has_room"),
    ),
    Fault(
        "a late refusal takes a sink for a hot token",
        "kiv_fast.recent:Recent.take_back",
        "if self.hot_count:",
        "if True:",
        real("a_token_that_is_refused_late_may_have_been_a_sink"),
    ),
    Fault(
        "a fork writes into a shared span",
        "kiv_fast.cold:Cold._put_span",
        "elif self._spans.shared(table.spans[number]):",
        "elif False:",
        real("a_fork_writes_a_last_span_of_its_own"),
    ),
    Fault(
        "a fork forgets infinite values",
        "kiv_fast.state:State.select",
        "copy.finite, copy._settled = self.length, self.pages, self.finite,",
        "copy.finite, copy._settled = self.length, self.pages, True,",
        real("a_fork_knows_of_infinite_values"),
    ),
    Fault(
        "a crop outdates one page late",
        "kiv_fast.cold:Cold.cut",
        "row.outdate(pages)",
        "row.outdate(pages + 1)",
        real("a_crop_builds_its_last_span_anew"),
    ),
    Fault(
        "a crop keeps old sizes",
        "kiv_fast.cold:Cold.cut",
        "row.sizes.cut(pages)",
        "pass",
        real("a_crop_forgets_which_sizes_there_were"),
    ),
    Fault(
        "whole pages gathered from RAM",
        "kiv_fast.arena:RamArena.values",
        "return self._reach.rows(",
        "self._reach.rows(self._value, self._page_tokens * width, (ids * heads + self._heads).view(-1))\n"
        "    return self._reach.rows(",
        (f"{COST}a_step_gathers_candidates_and_selected_rows",),
    ),
    Fault(
        "whole pages read from disk",
        "kiv_fast.tiered:TieredArena.values",
        "self._segments.read(joined(where, row_bytes, buffer))",
        "self.tile(sorted(set(picked[0].flatten().tolist()))); self._segments.read(joined(where, row_bytes, buffer))",
        (f"{COST}a_step_reads_no_more_from_disk",),
    ),
    Fault(
        "copies of keys kept beyond the budget",
        "kiv_fast.residence:Residence.touch",
        "self._ledger.take(ram=size)",
        "pass",
        (f"{COST}a_step_reads_no_more_from_disk",),
    ),
    Fault(
        "first in, first out for least recently used",
        "kiv_fast.residence:Residence.touch",
        "self._cached.move_to_end(unit)",
        "pass",
        (f"{COST}the_cache_of_keys_drops_the_one_used_longest_ago",),
    ),
    Fault(
        "keys in use evicted",
        "kiv_fast.residence:Residence.touch",
        "if oldest is None or oldest in used:",
        "if oldest is None:",
        (f"{COST}the_cache_of_keys_drops_the_one_used_longest_ago",),
    ),
    Fault(
        "every cold key read",
        "kiv_fast.retrieve:read_candidates",
        "known = pages.clamp(min=0)",
        "known = pages.clamp(min=0); cold.arena.keys(cold.page_ids(view.row, torch.arange(view.pages).repeat("
        "len(pages), 1)))",
        (f"{COST}a_step_gathers_candidates_and_selected_rows",),
    ),
    Fault(
        "the index is built and never used",
        "kiv_fast.select:candidates",
        "if scanner is None or not chapters or n == pages:",
        "if True:",
        (f"{COST}a_step_gathers_candidates_and_selected_rows",),
    ),
    *fast_rules.FAULTS,
    *fast_places.FAULTS,
]
