"""Faults in graphs of steps, in what tells a step how many tokens there are, and in the window that is a ring."""

from __future__ import annotations

from .kernels import KernelFault
from .source import Fault

GRAPHS = "packages/kiv-fast/tests/test_device_graphs.py"
SAME, LIVES, SINKS, REPORT, REFUSED, COUNTED = (
    (f"{GRAPHS}::test_{name}",)
    for name in (
        "steps_are_the_same",
        "lives_of_a_store",
        "learned_sinks_are_those_of_the_step",
        "a_report_is_of_its_own_step",
        "without_graphs_it_still_works",
        "its_memory_is_counted",
    )
)
TOLD = ("packages/kiv-fast/tests/test_device_graph_keys.py",)
STEPS = ("conformance/test_decode_steps.py", "--impl=fast-interpreted", "--profile=kill")
RING = ("packages/kiv-fast/tests/test_window.py",)
GRAPH = "kiv_fast.ops.triton.graph"
KERNELS = "kiv_fast.ops.triton.kernels"

FAULTS: list[Fault] = [
    Fault("any window will do", f"{GRAPH}:_how", "*asked.hot, asked.ids", "asked.ids", TOLD),
    Fault("any page ids will do", f"{GRAPH}:_how", "asked.ids, asked.counts", "asked.counts", TOLD),
    Fault("any buffers will do", f"{GRAPH}:_how", "take.version", "0", TOLD),
    Fault(
        "a graph asks what it was captured with",
        f"{GRAPH}:StepGraph.decode",
        "captured.query.copy_(asked.query)",
        "pass",
        SAME,
    ),
    Fault(
        "a graph has the learned sinks that it was captured with",
        f"{GRAPH}:StepGraph.decode",
        "captured.sink_logits.copy_(asked.sink_logits)",
        "pass",
        SINKS,
    ),
    Fault("results are overwritten", f"{GRAPH}:StepGraph.decode", "memory.clone()", "memory", REPORT),
    Fault("a step that is captured is not taken", f"{GRAPH}:StepGraph._capture", "\n    launches()\n", "\n", SAME),
    Fault("a capture is asked for again", f"{GRAPH}:StepGraph._capture", "self._graphs = None", "pass", REFUSED),
    Fault(
        "nobody holds what a graph has",
        "kiv_fast.ops.triton:TritonDecoder.held_bytes",
        "if self._graphs is None",
        "if True",
        COUNTED,
    ),
    Fault(
        "a device is told once how many tokens there are",
        "kiv_fast.device.lengths:Lengths.tell",
        "if counts != self._told",
        "if self._told is None",
        ("packages/kiv-fast/tests/test_device_steps.py::test_a_window_that_grows_has_all_tokens",),
    ),
    KernelFault(
        "a new token does not count",
        f"{KERNELS}.append:append",
        "counts_ptr + 1, hot)",
        "counts_ptr + 1, hot - 1)",
        STEPS,
    ),
    KernelFault(
        "a ring has an end",
        f"{KERNELS}.attend:attend",
        "tl.where(at < HOT, at, at - HOT)",
        "tl.minimum(at, HOT - 1)",
        STEPS,
    ),
    Fault(
        "what a ring has at its beginning is lost",
        "kiv_fast.tiers.window:Recent._move",
        "if live > ends",
        "if live < 0",
        RING,
    ),
    Fault(
        "a ring is read beyond its end",
        "kiv_fast.tiers.window:Recent._straighten",
        "if self._start + count > room",
        "if self._start + count > 2 * room",
        RING,
    ),
]
