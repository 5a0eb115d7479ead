"""Calls whose query blocks are answered together, on a simulated device."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from fast_helpers import SCALE
from kiv_fast import Tuning, together
from kiv_reference import KIVConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest
    from kiv_reference.report import BlockReport

CONFIG = KIVConfig(
    hot_tokens=20,
    sink_tokens=2,
    page_tokens=32,
    index_channels=14,
    candidate_tokens=48,
    retrieve_tokens=8,
    prefill="retrieve",
    query_block_tokens=4,
    exact_suffix_tokens=3,
)
"""Eight blocks see the same pages; here and there a head is widened."""

ALONE = Tuning(together_bytes=0)

PROMPT, CHUNKS = 150, (74, 2, 1)
"""The prompt is read without a query; of the first call a page becomes cold amid it, and the last block is shorter."""


class Geometry(NamedTuple):
    batch: int = 1
    heads: int = 2
    groups: int = 2
    width: int = 16
    value_width: int = 16


def note_shares(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Note from now on how many blocks, and sequences, are answered together."""
    seen, real = list[tuple[int, int]](), together._answer_some

    def noting(*asked: Any) -> None:
        seen.append((len(asked[2]), asked[3].stop - asked[3].start))
        real(*asked)

    monkeypatch.setattr(together, "_answer_some", noting)
    return seen


def draw(geometry: Geometry, tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    """Return keys, values and queries."""
    batch, heads, count, *widths = geometry
    generator = torch.Generator().manual_seed(seed)
    shapes = zip((heads, heads, heads * count), (*widths, widths[0]), strict=True)
    return [torch.randn(batch, n, tokens, width, generator=generator).to(dtype) for n, width in shapes]


def play(
    store: Any, data: Sequence[torch.Tensor], at: torch.device, chunks: Sequence[int] = CHUNKS, **modifiers: Any
) -> tuple[torch.Tensor, list[BlockReport]]:
    """Read a prompt and answer calls: outputs on the CPU, and reports."""
    outputs, blocks, start = list[torch.Tensor](), list[Any](), PROMPT
    store.append(*(part[:, :, :PROMPT].to(at) for part in data[:2]))
    sinks = modifiers.pop("sink_logits", None)
    for n in chunks:
        key, value, query = (part[:, :, start : start + n].to(at) for part in data)
        store.append(key, value)
        more = modifiers if sinks is None else {**modifiers, "sink_logits": sinks[:, :, start : start + n].to(at)}
        outputs.append(store.attend(query, scale=SCALE, **more).cpu())
        blocks += store.report.blocks
        start += n
    return torch.cat(outputs, dim=2), blocks


def check_reports(one: Sequence[BlockReport], other: Sequence[BlockReport], close: float) -> None:
    """Check that reports are equal, masses to rounding."""
    assert len(one) == len(other)
    for mine, right in zip(one, other, strict=True):
        for field in fields(right):
            a, b = getattr(mine, field.name), getattr(right, field.name)
            if isinstance(b, torch.Tensor) and b.is_floating_point():
                torch.testing.assert_close(a.cpu(), b.cpu(), rtol=0, atol=close, check_dtype=False)
            elif isinstance(b, torch.Tensor):
                assert torch.equal(a.cpu(), b.cpu()), field.name
            else:
                assert a == b, field.name
