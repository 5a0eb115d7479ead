"""Faults in how a device keeps rows of cold pages: by its kernels, and by the host."""

from __future__ import annotations

from .kernels import KernelFault
from .source import Fault

KEPT = ("packages/kiv-fast/tests/test_device_kept.py",)
NUMBERS, LEFT = (f"{KEPT[0]}::test_they_{name}" for name in ("change_no_number", "take_what_is_left"))
READS = ("packages/kiv-fast/tests/test_device_reads.py",)
KERNELS = "kiv_fast.ops.triton.kernels"

FAULTS: list[Fault] = [
    KernelFault("any row of a set will do", f"{KERNELS}.kept:where_kept", "== name[:, None]", ">= 0", KEPT),
    KernelFault("nothing is found", f"{KERNELS}.kept:where_kept", "== name[:, None]", "== -2 - name[:, None]", READS),
    KernelFault(
        "what is asked for again stays old",
        f"{KERNELS}.kept:note",
        "now, mask=there & (slot >= 0)",
        "now, mask=there & (slot < -1)",
        KEPT,
    ),
    KernelFault("rows of this step give way", f"{KERNELS}.kept:_put", "(asked < now)", "(asked <= now)", KEPT),
    KernelFault("the latest go first", f"{KERNELS}.kept:_put", "(other < asked", "(other > asked", KEPT),
    KernelFault("a set has lost its turn", f"{KERNELS}.kept:_end", "home, 0, mask", "home, 1, mask", KEPT),
    KernelFault("what is new is old", f"{KERNELS}.kept:_end", "place, now, mask", "place, 0, mask", KEPT),
    KernelFault("hits are counted again", f"{KERNELS}.kept:count", "2 + each, 0)", "2 + each, hits)", KEPT),
    KernelFault(
        "missed keys are not copied",
        f"{KERNELS}.read:_scores",
        "(there & (slot < 0))",
        "(there & (slot < -1))",
        (NUMBERS,),
    ),
    KernelFault(
        "missed values are not copied",
        f"{KERNELS}.attend:_selection",
        "mask & (slot < 0)",
        "mask & (slot < -1)",
        (NUMBERS,),
    ),
    KernelFault(
        "values take the places of keys",
        f"{KERNELS}.attend:_everything",
        "there, head, value_sets, DV, 1)",
        "there, head, key_sets, DV, 1)",
        (f"{KEPT[0]}::test_a_step_that_attends_everything_reads_what_is_kept",),
    ),
    KernelFault(
        "what a head takes more of is not kept",
        f"{KERNELS}.combine:combine",
        "candidates, most)\n                renew",
        "candidates, candidates)\n                renew",
        KEPT,
    ),
    Fault(
        "of several rows for a place the first one's numbers",
        "kiv_fast.device.kept:KeptRows.fill",
        "len(names) - 1 - first",
        "first",
        KEPT,
    ),
    Fault(
        "pages that went are still there",
        "kiv_fast.cold:Cold.let_go",
        "self.kept.empty()",
        "pass",
        (f"{KEPT[0]}::test_nothing_is_kept_of_pages_that_go",),
    ),
    Fault(
        "one store takes all",
        "kiv_fast.cold:Cold._make_kept",
        "// self._stores()",
        "// 1",
        (f"{KEPT[0]}::test_a_store_leaves_their_shares_to_others",),
    ),
    Fault("rows never give way", "kiv_fast.shared:Shared._make_room", "cold.drop_kept()", "pass", (LEFT,)),
    Fault(
        "a step uses what gave way to it",
        "kiv_fast.decode:Step.answer",
        "if cold.kept is None and asked.kept is not None:",
        "if False:",
        (LEFT,),
    ),
    Fault(
        "a step that broke off is half in the cache",
        "kiv_fast.decode:Step.answer",
        "cold.aside.drop()",
        "pass",
        (f"{KEPT[0]}::test_a_step_that_broke_off_leaves_nothing_half_done",),
    ),
    Fault(
        "more sequences than lanes", "kiv_fast.cold:Cold.keep_rows", ">= batch * self.shape.heads", ">= 1", (NUMBERS,)
    ),
    Fault(
        "lanes are of the first sequences",
        "kiv_fast.decode:Step.answer",
        "keep_rows(len(state.rows))",
        "keep_rows(1)",
        (NUMBERS,),
    ),
    Fault(
        "a report counts all rows as kept",
        "kiv_fast.trace:BlockTrace.report",
        "keys * key_size + values * value_size",
        "key_rows * key_size",
        KEPT,
    ),
]
