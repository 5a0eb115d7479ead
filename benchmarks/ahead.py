"""Triton kernels compiled ahead of time, for cards that need not be there.

A step is recorded with tensors that have shapes and no memory; each launch of it is compiled as it would be on a card,
by the compiler that Triton brings. Registers, spills and shared memory are what the assembler says; nothing is run.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import torch

if TYPE_CHECKING:
    from kiv_fast.ops.decoding import Decode

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int64: "*i64",
}
ALIGNED = [["tt.divisibility", 16]]
"""What Triton knows of a pointer of torch's, and of a number that 16 divides."""


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


@dataclass(frozen=True)
class Launch:
    """A kernel with the types of its arguments, as Triton's launcher would specialise it."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]
    grid: tuple[int, ...]


def asked(g: Geometry) -> Decode:
    """Return a step of a geometry, without numbers."""
    from kiv_fast.device.kept import NOTED, WAYS, Kept, sets_for
    from kiv_fast.ops.decoding import Decode
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
        counts=(4, HOT - 256, 0),
        ids=empty(g.batch, pages, dtype=torch.int32),
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


def launches(step: Decode) -> list[Launch]:
    """Record the launches of a step."""
    from kiv_fast.ops.triton import decode as module

    found = list[Launch]()

    def record(kernel: Any, grid: tuple[int, ...], given: dict[str, Any], **more: Any) -> None:
        names = kernel.arg_names
        options = {name: more.pop(name) for name in [*more] if name not in names}
        signature, constants, attributes = dict[str, str](), dict[str, Any](), dict[tuple[int, ...], Any]()
        compiled = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
        for number, name in enumerate(names):
            value = more.get(name, given.get(name))
            fixed = not kernel.params[number].do_not_specialize
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, torch.Tensor):
                signature[name] = POINTERS[value.dtype]
            if name in compiled or value is None or (fixed and signature[name] == "i32" and value == 1):
                signature[name], constants[name] = "constexpr", value
            whole = fixed and signature[name] == "i32" and value is not None and value % 16 == 0
            if whole or isinstance(value, torch.Tensor):
                attributes[(number,)] = ALIGNED
        name = "widen" if constants.get("WIDER") else kernel.__name__
        found.append(Launch(name, kernel, signature, constants, attributes, options, grid))

    def take(
        name: str, shape: tuple[int, ...], dtype: torch.dtype, fill: int | None = None, aside: bool = False
    ) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    batch, heads, _, width = step.sinks[0].shape
    new = [
        torch.empty(batch, heads, 1, size, dtype=step.query.dtype, device="meta")
        for size in (width, step.sinks[1].shape[3])
    ]
    with mock.patch.object(module, "launch", record):
        module.append_token(new[0], new[1], step.hot, 7, step.odd)
        module.decode(step, take, wide=False)
    return found


def resources(launch: Launch, card: Card) -> tuple[int, int, int]:
    """Compile a launch for a card; return registers, bytes of spills (registers on AMD) and bytes of shared memory."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    made = triton.compile(source, target=GPUTarget(card.backend, card.arch, card.warp), options=launch.options)
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
