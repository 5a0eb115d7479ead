"""Triton kernels compiled ahead of time, for cards that need not be there.

A step is recorded with tensors that have shapes and no memory; each launch of it is compiled as it would be on a card,
by the compiler that Triton brings. Registers, spills and shared memory are what the assembler says; nothing is run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiv_fast.ops.decoding import Decode


class Card(NamedTuple):
    """A target of Triton's compiler, and the shared memory that one program may have there."""

    backend: str
    arch: int | str
    warp: int
    shared: int
    example: str


CARDS = {
    "sm_80": Card("cuda", 80, 32, 166_912, "A100"),
    "sm_86": Card("cuda", 86, 32, 101_376, "RTX 3060"),
    "sm_89": Card("cuda", 89, 32, 101_376, "RTX 4070, 4090"),
    "sm_90": Card("cuda", 90, 32, 232_448, "H100, H200"),
    "sm_100": Card("cuda", 100, 32, 232_448, "B200"),
    "sm_120": Card("cuda", 120, 32, 101_376, "RTX 5090"),
    "gfx90a": Card("hip", "gfx90a", 64, 65_536, "MI250"),
    "gfx942": Card("hip", "gfx942", 64, 65_536, "MI300"),
    "gfx1100": Card("hip", "gfx1100", 32, 65_536, "RX 7900"),
    "gfx1201": Card("hip", "gfx1201", 32, 65_536, "RX 9070"),
}
OLDEST = [name for name in CARDS if name not in ("sm_100", "sm_120")]
"""What the oldest supported Triton, 3.2, compiles for."""


@dataclass(frozen=True)
class Geometry:
    """A layer, and what is asked of it."""

    heads: int
    groups: int
    width: int
    value_width: int
    tokens: int
    dtype: torch.dtype = torch.bfloat16
    batch: int = 1
    softcap: float | None = None
    sinks: bool = False
    group_max: bool = False


K, M = 1 << 10, 1 << 20
GEOMETRIES = {
    "SmolLM2, 32K": Geometry(3, 3, 64, 64, 32 * K),
    "Llama 8B, 1M": Geometry(8, 4, 128, 128, M),
    "512 channels, soft cap, sinks, 1M": Geometry(1, 8, 512, 512, M, softcap=30.0, sinks=True),
    "float32, 128K, group max, batch of 2": Geometry(4, 2, 128, 64, 128 * K, torch.float32, batch=2, group_max=True),
    "float16, 192 and 128 channels, 16 heads a KV head, 64K": Geometry(2, 16, 192, 128, 64 * K, torch.float16),
}
PAGE, HOT, CODED, CANDIDATES, SELECTED = 512, 2560, 64, 4096, 1024


class Launch(NamedTuple):
    """A kernel, its arguments and options by name, and how many programs."""

    name: str
    kernel: Any
    given: dict[str, Any]
    grid: tuple[int, ...]


class Driver(NamedTuple):
    """Stands in for Triton's driver of a card: its launcher then compiles for that as on any other."""

    card: Card

    def get_current_device(self) -> Card:
        """Return what kernels are kept by."""
        return self.card

    def get_current_stream(self, device: Card) -> int:
        """Return none."""
        return 0

    def get_current_target(self) -> Any:
        """Return what is compiled for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget(self.card.backend, self.card.arch, self.card.warp)


def asked(g: Geometry) -> Decode:
    """Return a step of a geometry, without numbers."""
    from kiv_fast.device.kept import NOTED, WAYS, Kept, sets_for
    from kiv_fast.ops.decoding import Decode, page_room
    from kiv_fast.shape import Shape
    from kiv_fast.tuning import Tuning
    from kiv_reference import KIVConfig

    def empty(*shape: int, dtype: torch.dtype = g.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    pages, single = g.tokens // PAGE, torch.float32
    index = (
        empty(pages, g.heads, PAGE // 16, CODED // 8, 16, dtype=torch.int32),
        empty(pages, g.heads, CODED, dtype=torch.int16),
        empty(pages, g.heads, CODED, dtype=single),
        empty(pages, g.heads, g.width, dtype=single),
        empty(pages, g.heads, g.value_width, dtype=single),
    )

    def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        return empty(*shape, g.width), empty(*shape, g.value_width)

    shape = Shape(g.batch, g.heads, g.width, g.value_width, g.dtype, torch.device("meta"))
    sets = sets_for(shape, KIVConfig(candidate_tokens=CANDIDATES, retrieve_tokens=SELECTED), Tuning(), None)
    assert sets is not None, "no room for rows"
    lanes = g.batch * g.heads
    tables = [empty(lanes, NOTED * n + 1, dtype=torch.int32) for n in sets]
    rows = empty(lanes, WAYS * sets.keys, g.width), empty(lanes, WAYS * sets.values, g.value_width)
    kept = Kept((tables[0], rows[0]), (tables[1], rows[1]), empty(lanes, 4, dtype=torch.int64))
    return Decode(
        query=empty(g.batch, g.heads * g.groups, 1, g.width),
        sinks=pair(g.batch, g.heads, 4),
        hot=pair(g.batch, g.heads, HOT),
        counts=empty(4, dtype=torch.int32),
        pages=pages,
        ids=empty(g.batch, page_room(pages), dtype=torch.int32),
        index=index,
        rows=pair(pages, g.heads, PAGE),
        kept=kept,
        page_tokens=PAGE,
        candidates=CANDIDATES,
        selected=SELECTED,
        group_max=g.group_max,
        tail=True,
        scale=g.width**-0.5,
        softcap=g.softcap,
        sink_logits=empty(g.batch, g.heads * g.groups, dtype=single) if g.sinks else None,
        odd=empty(3, dtype=torch.int32),
    )


def launches(step: Decode, backend: str) -> list[Launch]:
    """Record the launches of a step on a backend."""
    from kiv_fast.ops.triton import decode as module
    from triton import JITFunction

    found = list[Launch]()

    def record(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            found.append(Launch("widen" if given.get("WIDER") else kernel.__name__, kernel, given, grid))

        return run

    def buffer(name: str, shape: tuple[int, ...], dtype: torch.dtype, *more: Any) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    take: Any = buffer
    batch, heads, _, width = step.sinks[0].shape
    new = [
        torch.empty(batch, heads, 1, size, dtype=step.query.dtype, device="meta")
        for size in (width, step.sinks[1].shape[3])
    ]
    hip = "any" if backend == "hip" else None
    with mock.patch.object(JITFunction, "__getitem__", record), mock.patch.object(torch.version, "hip", hip):
        module.append_token(new[0], new[1], step.hot, (4, HOT - 256, 0, step.pages), step.counts, step.odd)
        module.decode(step, take, wide=False)
    return found


def resources(launch: Launch, card: Card) -> tuple[int, int, int]:
    """Compile a launch for a card; return registers, bytes of spills (registers on AMD) and bytes of shared memory."""
    import triton

    # Triton 3.2 asks for ROCm's linker; what a kernel takes is known before.
    os.environ.setdefault("TRITON_HIP_LLD_PATH", shutil.which("true") or "")
    driver: Any = Driver(card)
    triton.runtime.driver.set_active(driver)
    made = launch.kernel.warmup(grid=launch.grid, **launch.given)
    if card.backend == "hip":
        found = [re.search(rf"\.{name}:\s*(\d+)", made.asm["amdgcn"]) for name in ("vgpr_count", "vgpr_spill_count")]
        registers, spilled = (int(match[1]) for match in found if match)
        return registers, spilled, made.metadata.shared
    tool = Path(os.path.dirname(triton.__file__)) / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert match, text
    return int(match[1]), int(match[2]) + int(match[3]), made.metadata.shared
