"""Faults in how a device attends everything: which attention it takes, how tiles come to it, what is booked."""

from __future__ import annotations

from .source import Fault

TESTS = "packages/kiv-fast/tests/test_"
PREFILL = f"{TESTS}prefill_on_a_device.py::test_"
AHEAD = f"{TESTS}ahead.py::test_"

FAULTS = [
    Fault(
        "a fused attention is taken whatever its numbers are",
        "kiv_fast.attention.choice:_why_not",
        "if output <= most and mass <= 2.0**-15:",
        "if True:",
        (f"{TESTS}fused.py::test_a_way_with_other_numbers_is_refused",),
    ),
    Fault(
        "a log-sum-exp may be off by what half a dtype leaves",
        "kiv_fast.attention.choice:_why_not",
        "mass <= 2.0**-15",
        "mass <= most",
        (f"{TESTS}fused.py::test_a_way_with_other_numbers_is_refused",),
    ),
    Fault(
        "widths stay as they are",
        "kiv_fast.attention.fused:_widened",
        "if missing else",
        "if False else",
        (f"{TESTS}fused.py::test_the_first_way_that_serves",),
    ),
    Fault(
        "what fills a log-sum-exp up counts",
        "kiv_fast.attention.fused:Way.__call__",
        "[..., : query.shape[2]]",
        "[..., -query.shape[2] :]",
        (f"{TESTS}fused.py::test_the_first_way_that_serves",),
    ),
    Fault(
        "with a soft cap a query sees the next token",
        "kiv_fast.attention.fused:capping",
        "at >= token",
        "at > token - 2",
        (f"{TESTS}fused.py::test_flex_attention_caps",),
    ),
    Fault(
        "FlexAttention is compiled no more often than torch allows",
        "kiv_fast.attention.fused:compiled_flex",
        "{limit: VERSIONS}",
        "{}",
        (f"{TESTS}fused.py::test_flex_attention_is_compiled_for_more_kinds_of_calls_than_torch_allows",),
    ),
    Fault(
        "huge logits on a device go through one log-sum-exp",
        "kiv_fast.attention.exact:_Fused.lost",
        "return self._largest is not None and not _tells(self._largest)",
        "return False",
        (f"{PREFILL}huge_logits_are_seen_at_the_end_and_attended_again",),
    ),
    Fault(
        "only the last tile's logits are looked at",
        "kiv_fast.attention.exact:_Fused._part",
        "largest if self._largest is None else torch.maximum(self._largest, largest)",
        "largest",
        (f"{PREFILL}huge_logits_of_one_tile_alone",),
    ),
    Fault(
        "padding in a tile is attended on a device",
        "kiv_fast.attention.exact:_Fused.attend",
        "tile = tile.part(at[0], at[-1] + 1) if at else tile.part(0, 0)",
        "pass",
        (f"{PREFILL}fused_attention_attends_everything",),
    ),
    Fault(
        "padding within a tile is attended on a device",
        "kiv_fast.attention.exact:_Fused.attend",
        "at[-1] - at[0] >= len(at)",
        "False",
        (f"{PREFILL}padding_within_a_tile",),
    ),
    Fault(
        "each tile of a device is waited for",
        "kiv_fast.attention.exact:_Fused._part",
        "if not self._on_cpu:",
        "if _tells(largest) and not self._on_cpu:",
        (f"{PREFILL}device_memory_is_bounded_by_chunk_and_tile",),
    ),
    Fault(
        "a buffer is filled while its tile is attended",
        "kiv_fast.device.ahead:Ahead.tiles",
        "free[turn] = self._streams.mark()",
        "pass",
        (f"{AHEAD}tiles_arrive_as_they_were",),
    ),
    Fault(
        "a tile is attended before its copy has landed",
        "kiv_fast.device.ahead:Ahead.tiles",
        "copies.join()\n            yield",
        "yield",
        (f"{AHEAD}tiles_arrive_as_they_were",),
    ),
    Fault(
        "copies go on after a call that broke off",
        "kiv_fast.device.ahead:Ahead.tiles",
        "self._streams.rejoin()",
        "pass",
        (f"{AHEAD}copies_that_were_begun_are_over_when_a_call_breaks_off",),
    ),
    Fault(
        "pinned memory is filled again while it is copied from",
        "kiv_fast.device.ahead:Ahead._send",
        "tell(copies.wait)",
        "tell(lambda: None)",
        (f"{AHEAD}tiles_arrive_as_they_were",),
    ),
    Fault(
        "pages stay in the order in which they lie",
        "kiv_fast.device.ahead:Ahead._in_order",
        "ordered.copy_(target.transpose(0, 1))",
        "ordered.copy_(target.view(ordered.shape))",
        (f"{AHEAD}tiles_arrive_as_they_were",),
    ),
    Fault(
        "a copy reaches over two pinned slabs",
        "kiv_fast.memory.growable_table:Table.pieces",
        "[start, *inside, stop]",
        "[start, stop]",
        (f"{AHEAD}no_piece_reaches_over_the_end_of_a_pinned_slab",),
    ),
    Fault(
        "pages that lie apart are copied as if side by side",
        "kiv_fast.memory.growable_table:Table.pieces",
        "records[last + 1] == record + 1",
        "True",
        (f"{AHEAD}no_piece_reaches_over_the_end_of_a_pinned_slab",),
    ),
    Fault(
        "buffers for tiles are not booked",
        "kiv_fast.memory.scratch:tile_bytes",
        "return 3 *",
        "return 0 *",
        (f"{PREFILL}buffers_for_tiles_are_booked",),
    ),
    Fault(
        "tiles of a device are as large as those of a CPU",
        "kiv_fast.memory.scratch:tile_pages",
        "min(tokens, tuning.tile_bytes // shape.token_bytes)",
        "tokens",
        (f"{PREFILL}the_size_of_a_tile_depends_on_what_is_stored_alone",),
    ),
]
