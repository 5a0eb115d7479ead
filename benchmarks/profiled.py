"""What a step asks of a device, counted by torch's profiler: launches, waits of the host, bytes copied."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from collections.abc import Callable

WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
"""Calls in which the host waits for the device; that for the whole device is left out, it is the measurement's own."""


def profiled(step: Callable[[], object], steps: int, device: torch.device) -> dict[str, float]:
    """Run `step` so often under the profiler.

    Returns
    -------
    counts for one step: ``operations`` of torch, ``launches``, ``waits``, and ``copied_bytes`` by direction, as the
    driver names it; what a kernel reads from host memory by itself is no copy
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return {name: count / steps for name, count in counted(events).items()}


def counted(events: list[dict[str, Any]]) -> dict[str, int]:
    """Count the events of a trace in Chrome's format."""
    counts = Counter({"operations": 0, "launches": 0, "waits": 0})
    for event in events:
        category, name = event.get("cat"), event.get("name", "")
        if category == "cpu_op":
            counts["operations"] += 1
        elif category == "kernel":
            counts["launches"] += 1
        elif category == "cuda_runtime" and name in WAITS:
            counts["waits"] += 1
        elif category == "gpu_memcpy":
            counts[f"copied_bytes {name.removeprefix('Memcpy ')}"] += int(event["args"]["bytes"])
    return dict(counts)
