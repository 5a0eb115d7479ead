"""Faults in the tiered implementation: those that once lived here, those of its modules beside."""

from __future__ import annotations

from . import fast_compiled, fast_places, fast_retrieval, fast_rules
from .source import Fault, clause

REAL = "packages/kiv-fast/tests/test_real_faults.py"


def real(test: str) -> tuple[str, ...]:
    """Name one test of `REAL`."""
    return (f"{REAL}::test_{test}",)


COST = "packages/kiv-fast/tests/test_cost_contract.py::test_"

FAULTS = [
    Fault(
        "no last partial tile",
        "kiv_fast.call:_all_tiles",
        "range(0, pages, state.tile_pages)",
        "range(0, max(1, pages - pages % state.tile_pages), state.tile_pages)",
        real("exact_attention_reaches_the_last_tile"),
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
    *fast_places.FAULTS,
    *fast_compiled.FAULTS,
]
