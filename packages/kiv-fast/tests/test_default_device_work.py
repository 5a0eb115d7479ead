"""Stores work under any default device of torch: what they make is made where the keys are, or in RAM."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import SCALE, draw
from kiv_fast import FastPool
from kiv_reference import KIVConfig, LayerStore, ReferencePool, StorePool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kiv_reference.report import TierBytes, TierTokens


@pytest.fixture
def elsewhere() -> Iterator[Callable[[], None]]:
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)  # not to what it was: to name it would be a mode for the rest of the process


def work(
    pool: StorePool, rows: Any, masks: Any
) -> tuple[list[Any], tuple[TierBytes, TierBytes, TierTokens, TierTokens]]:
    """Return all that a store does; every output, and what is held at the end."""
    store = pool.layer_store()
    data = draw(3, 120, batch=2)
    outputs = []

    def call(store: LayerStore, start: int, stop: int, mask: torch.Tensor | None = None, **kwargs: Any) -> None:
        key, value, query = (part[: store_batch(store), :, start:stop] for part in data)
        store.append(key, value, mask)
        outputs.append(store.attend(query, scale=SCALE, **kwargs))
        assert store.report.blocks

    call(store, 0, 50)
    for at in range(50, 60):
        call(store, at, at + 1, bound=at % 2 == 0)
    call(store, 60, 70, masks[0])
    call(store, 70, 71, masks[1])
    other = store.fork()
    store.crop(30)
    call(store, 30, 60, softcap=5.0)
    store.reorder(rows[0])
    store.select(rows[1])
    call(store, 60, 61, sink_logits=data[0].new_zeros(4))
    store.repeat_interleave(2)
    call(store, 61, 62)
    call(other, 71, 90)
    other.crop(12)
    call(other, 12, 90)
    valid = other.valid
    outputs += [] if valid is None else [valid]
    counts = store.memory(), other.memory(), store.tokens(), other.tokens()
    store.reset()
    pool.close()
    return outputs, counts


def store_batch(store: LayerStore) -> int:
    memory = getattr(store, "state", None) or getattr(store, "contents", None)
    if memory is None:
        return 2
    return memory.shape.batch if hasattr(memory, "shape") else memory.valid.shape[0]


@pytest.mark.parametrize("tiers", ["reference", "RAM", "disk"])
@pytest.mark.parametrize(
    "change",
    [
        {"retrieve_tokens": None},
        {"prefill": "retrieve", "exact_suffix_tokens": 0},
        {"prefill": "window", "exact_suffix_tokens": 0},
        {"max_missed_mass": 0.2},
        {"group": "max", "tail": "none"},
    ],
)
def test_a_store_does_the_same(
    tiers: str, change: Any, config: KIVConfig, tmp_path: Path, elsewhere: Callable[[], None]
) -> None:
    config = replace(config, **change)
    if tiers == "disk":
        config = replace(config, ram_bytes=30_000, spill_dir=tmp_path)
    make = ReferencePool if tiers == "reference" else FastPool
    rows = torch.tensor([1, 0]), torch.tensor([1])
    masks = torch.ones(2, 10, dtype=torch.bool), torch.ones(2, 1, dtype=torch.bool)
    masks[0][0, 3] = False
    expected, counts = work(make(config), rows, masks)
    data = draw(3, 120, batch=2)
    elsewhere()
    with pytest.MonkeyPatch.context() as patch:  # the generator of the data follows the default device too
        patch.setitem(globals(), "draw", lambda *_, **__: data)
        outputs, again = work(make(config), rows, masks)
    assert again == counts
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
