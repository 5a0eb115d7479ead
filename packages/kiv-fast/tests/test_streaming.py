"""Full attention of few queries, and of those heads alone that stream (SPEC 6.3, 9.6)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pytest
import torch
from fast_helpers import SCALE, assert_close, draw, feed
from kiv_fast import FastPool, Tuning
from kiv_reference import KIVConfig, ReferencePool

if TYPE_CHECKING:
    from pathlib import Path

CHUNKS = [120, 1, 1, 3, 1]
HEADS, LENGTH = 5, 126
FLAT = [True, False, False, True, True]
"""Which heads attend to everything alike, and so must stream; the queries of the others seek one token."""


def uneven(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    key, value, query = draw(0, LENGTH, heads=HEADS, dtype=dtype)
    key[:, ~torch.tensor(FLAT), 40] = 4.0
    query.abs_().mul_(torch.tensor([0.01 if flat else 4.0 for flat in FLAT]).repeat_interleave(2)[None, :, None, None])
    return key, value, query.to(dtype)


def limited(config: KIVConfig) -> KIVConfig:
    return replace(config, max_missed_mass=0.05, candidate_tokens=4, retrieve_tokens=2, index_channels=16)


@pytest.mark.parametrize("ops", ["torch", "auto"])
@pytest.mark.parametrize("tile_tokens", [8, 1024])
def test_only_heads_that_stream_are_read_whole(
    config: KIVConfig, ops: Literal["torch", "auto"], tile_tokens: int, tmp_path: Path
) -> None:
    data, outputs = uneven(torch.float32), list[torch.Tensor]()
    for ram in (None, 30_000):
        pool = FastPool(
            replace(limited(config), ram_bytes=ram, spill_dir=tmp_path), tuning=Tuning(tile_tokens=tile_tokens), ops=ops
        )
        store = pool.layer_store()
        outputs.append(feed(store, data, CHUNKS[:-1]))
        pool.counters.streamed_bytes = 0
        outputs[-1] = torch.cat([outputs[-1], feed(store, [part[:, :, -1:] for part in data], [1])], dim=2)
        (block,) = store.report.blocks
        assert (store.tokens().cold_disk > 0) == (ram is not None)
        assert block.streamed.tolist() == [FLAT]
        cold = block.cold_pages * config.page_tokens
        assert pool.counters.streamed_bytes == sum(FLAT) * cold * (16 + 16) * 4
        taken = [int((part >= 0).sum()) for part in (block.candidate_positions, block.selected_positions)]
        assert block.key_bytes == (sum(FLAT) * cold + taken[0]) * 16 * 4
        assert block.value_bytes == (sum(FLAT) * cold + taken[1]) * 16 * 4
    assert torch.equal(*outputs)
    assert_close(outputs[0], feed(ReferencePool(limited(config)).layer_store(), data, CHUNKS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value_width", [16, 24])
def test_few_queries_attend_tile_by_tile(config: KIVConfig, dtype: torch.dtype, value_width: int) -> None:
    """With a soft cap, learned sinks and padding, in tiles of three pages, the last one shorter."""
    data, config = draw(1, 300, value_width=value_width, dtype=dtype), replace(config, retrieve_tokens=None)
    valid = torch.ones(1, 300, dtype=torch.bool)
    valid[:, 30:37] = False
    outputs = list[torch.Tensor]()
    for pool in (FastPool(config, tuning=Tuning(tile_tokens=12)), ReferencePool(config)):
        store = pool.layer_store()
        for at in (slice(0, 290), slice(290, 297), slice(297, 300)):
            key, value, query = (part[:, :, at] for part in data)
            store.append(key, value, valid[:, at])
            output = store.attend(query, scale=SCALE, softcap=3.0, sink_logits=torch.tensor([0.5, 4.0, 1.0, 2.0]))
        outputs.append(output)
    near = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(*outputs, rtol=near, atol=near)
