"""Faults in the tiered implementation: those that once lived here, those of its modules beside."""

from __future__ import annotations

from . import (
    fast_compiled,
    fast_device,
    fast_disk,
    fast_graphs,
    fast_kept,
    fast_pinning,
    fast_places,
    fast_retrieval,
    fast_rules,
    fast_snapshots,
    fast_together,
    fast_triton,
)
from .source import Fault, clause

REAL = "packages/kiv-fast/tests/test_real_faults.py"


def real(test: str) -> tuple[str, ...]:
    """Name one test of `REAL`."""
    return (f"{REAL}::test_{test}",)


STREAMING = "packages/kiv-fast/tests/test_streaming.py::test_"

COST = "packages/kiv-fast/tests/test_cost_contract.py::test_"

FAULTS = [
    Fault(
        "no last partial tile",
        "kiv_fast.tokens:Tokens.cold_tiles",
        "range(0, pages, self.tile_pages)",
        "range(0, max(1, pages - pages % self.tile_pages), self.tile_pages)",
        real("exact_attention_reaches_the_last_tile"),
    ),
    Fault(
        "no last partial tile where it lies",
        "kiv_fast.tokens:Tokens.paged_tiles",
        "range(0, pages, self.tile_pages)",
        "range(0, max(1, pages - pages % self.tile_pages), self.tile_pages)",
        (f"{STREAMING}few_queries_attend_tile_by_tile",),
    ),
    Fault(
        "heads that stream take others along",
        "kiv_fast.call:runs",
        "slice(places[0], places[-1] + 1)",
        "slice(0, len(marks))",
        (f"{STREAMING}only_heads_that_stream_are_read_whole",),
    ),
    Fault(
        "learned sinks count in every tile",
        "kiv_fast.attention.exact:attend_by_tile",
        "replace(queries, sink_logits=None)",
        "queries",
        (f"{STREAMING}few_queries_attend_tile_by_tile",),
    ),
    Fault(
        "pages of some heads lie as if they were all",
        "kiv_fast.ops.addresses:_pages",
        "table.stride(0) // (size * width)",
        "table.shape[1]",
        (f"{STREAMING}only_heads_that_stream_are_read_whole",),
    ),
    Fault(
        "a fork forgets infinite values",
        "kiv_fast.state:State.select",
        "copy.finite = self.length, self.pages, self.finite",
        "copy.finite = self.length, self.pages, True",
        real("a_fork_knows_of_infinite_values"),
    ),
    Fault(
        "no index of the last partial chunk",
        "kiv_fast.cold:Cold._code",
        "range(0, len(ids), step)",
        "range(0, max(1, len(ids) - len(ids) % step), step)",
        real("every_page_of_a_long_append_is_indexed"),
    ),
    Fault(
        "a crop keeps pages behind it",
        "kiv_fast.state:State.crop",
        "self.cold.cut(row, pages)",
        "self.cold.cut(row, pages + 1)",
        clause("9.2"),
    ),
    Fault(
        "whole pages gathered from RAM",
        "kiv_fast.tiers.ram:RamArena._rows",
        "return self._gather.rows(table, places)",
        "self._gather.rows(table, places.repeat(1, self._page_tokens))\n    return self._gather.rows(table, places)",
        (f"{COST}a_step_gathers_candidates_and_selected_rows",),
    ),
    Fault(
        "whole pages read from disk",
        "kiv_fast.tiers.tiered:TieredArena._rows",
        "self._read(table, at",
        "self.tile(sorted(set((at // size).tolist())))\n    self._read(table, at",
        (f"{COST}a_step_reads_no_more_from_disk",),
    ),
    Fault(
        "every cold key read",
        "kiv_fast.ops.torch:TorchOps.scores",
        "read = (",
        "keys.read(torch.arange(int(places.max()) + 1)[None])\n    read = (",
        (f"{COST}a_step_gathers_candidates_and_selected_rows",),
    ),
    *fast_retrieval.FAULTS,
    *fast_rules.FAULTS,
    *fast_snapshots.FAULTS,
    *fast_places.FAULTS,
    *fast_pinning.FAULTS,
    *fast_device.FAULTS,
    *fast_together.FAULTS,
    *fast_triton.FAULTS,
    *fast_graphs.FAULTS,
    *fast_kept.FAULTS,
    *fast_disk.FAULTS,
    *fast_compiled.FAULTS,
]
