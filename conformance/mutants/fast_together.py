"""Faults in blocks and sequences that are answered together: what each sees, where its keys are, what is booked."""

from __future__ import annotations

from .source import Fault

TESTS = "packages/kiv-fast/tests/test_"
TOGETHER = f"{TESTS}blocks_together.py::test_"
COST = f"{TESTS}blocks_together_cost.py::test_"
REFERENCE = (f"{TOGETHER}blocks_are_answered_as_the_reference_does",)

FAULTS = [
    Fault(
        "each block sees what the last one of them sees",
        "kiv_fast.ops.softmax:tile_logits",
        "hidden.view(queries.blocks, 1, count, hidden.shape[1])",
        "hidden.view(queries.blocks, 1, count, hidden.shape[1])[-1:]",
        REFERENCE,
    ),
    Fault(
        "blocks are the outer heads, and KV heads the inner ones",
        "kiv_fast.cold:Cold.places",
        "begin.repeat_interleave(blocks, dim=0).repeat(sequences, 1)",
        "begin.repeat(sequences * blocks, 1)",
        REFERENCE,
    ),
    Fault(
        "all sequences read the first one's pages",
        "kiv_fast.cold:Cold.places",
        "at = at + (first",
        "at = at + 0 * (first",
        REFERENCE,
    ),
    Fault(
        "the index of several sequences is in the order of pages",
        "kiv_fast.ops.page_index:PageIndex.records",
        "[:, first:stop].flatten()",
        "[:, first:stop].T.flatten()",
        REFERENCE,
    ),
    Fault(
        "blocks of several partitions are answered together",
        "kiv_fast.partition:alike",
        "block.stop - block.start, block.pages)",
        "block.stop - block.start)",
        REFERENCE,
    ),
    Fault(
        "blocks with padding are answered together",
        "kiv_fast.together:share_of",
        "if not state.validity.whole:",
        "if False:",
        (f"{TESTS}device.py::test_a_device_answers_as_the_cpu_does",),
    ),
    Fault(
        "exact blocks with padding are answered as if all were valid",
        "kiv_fast.together:answer_blocks",
        " and state.validity.whole",
        "",
        (f"{TOGETHER}blocks_with_nothing_to_choose_are_answered_as_the_reference_does",),
    ),
    Fault(
        "exact blocks tell of the bytes of the first",
        "kiv_fast.together:_answer_exactly",
        "trace.block.pages * state",
        "block.pages * state",
        (f"{TOGETHER}blocks_with_nothing_to_choose_are_answered_as_the_reference_does",),
    ),
    Fault(
        "exact blocks are answered one by one",
        "kiv_fast.together:answer_blocks",
        "len(some) > 1 and ",
        "False and ",
        (f"{COST}blocks_with_nothing_to_choose_are_one_set_of_launches",),
    ),
    Fault(
        "a block whose heads are not widened tells of as many candidates as one whose are",
        "kiv_fast.together:_note",
        "width = found.width if late else few",
        "width = found.width",
        (f"{TOGETHER}a_head_is_widened_in_its_own_block_alone",),
    ),
    Fault(
        "the bytes of a widened head are counted in every block",
        "kiv_fast.together:_note",
        ".intersection(range(mine.start, mine.stop, mine.step))",
        "",
        (f"{TOGETHER}a_head_is_widened_in_its_own_block_alone",),
    ),
    Fault(
        "as many blocks are answered together as there are",
        "kiv_fast.memory.scratch:heads_together",
        "max(1, min(heads, _heads_gathered(shape, config, tuning)))",
        "1 << 20",
        (f"{COST}what_is_answered_together_takes_bounded_memory",),
    ),
    Fault(
        "what is gathered together is not booked",
        "kiv_fast.memory.scratch:step_bytes",
        "if tuning.together(shape.device):",
        "if False:",
        (f"{COST}what_is_gathered_together_is_booked",),
    ),
    Fault(
        "the scores of blocks outlive their call",
        "kiv_fast.ops.arguments:Found.told",
        "none = self.raw.new_empty(0, 0, 0)",
        "none = self.raw",
        (f"{COST}scores_are_not_kept_after_a_call",),
    ),
]
