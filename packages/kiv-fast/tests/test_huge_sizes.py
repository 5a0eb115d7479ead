"""Sizes that are allowed and larger than any machine: what is stored takes memory, not what might be (SPEC 10.2)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fast_helpers import SCALE, assert_close, draw, state_of
from kiv_fast import FastPool
from kiv_fast.tiers.window import Recent
from kiv_reference import KIVConfig, ReferencePool
from kiv_reference.config import MOST, MOST_TOGETHER, Prefill
from kiv_reference.errors import KIVBudgetError

SMALL: dict[str, Any] = {
    "hot_tokens": 8,
    "sink_tokens": 2,
    "page_tokens": 4,
    "index_channels": 6,
    "candidate_tokens": 20,
}
HUGE: dict[str, dict[str, Any]] = {
    "sinks": {"sink_tokens": MOST_TOGETHER},
    "hot": {"hot_tokens": MOST},
    "page": {"page_tokens": MOST_TOGETHER},
    "page beyond a large window": {"page_tokens": MOST_TOGETHER, "hot_tokens": 20},
    "channels": {"index_channels": MOST},
    "candidates": {"candidate_tokens": MOST},
    "candidates and tokens": {"candidate_tokens": MOST, "retrieve_tokens": MOST},
    "blocks": {"query_block_tokens": MOST},
    "suffix": {"exact_suffix_tokens": MOST},
    "all": {"sink_tokens": MOST_TOGETHER, "page_tokens": MOST_TOGETHER, "index_channels": MOST,
            "hot_tokens": MOST, "candidate_tokens": MOST, "retrieve_tokens": MOST},
}  # fmt: skip


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("prefill", ["exact", "retrieve", "window"])
@pytest.mark.parametrize("case", HUGE)
def test_a_size_beyond_the_machine_is_as_good_as_any(case: str, prefill: Prefill, padded: bool) -> None:
    fields: dict[str, Any] = {**SMALL, "retrieve_tokens": 7, **HUGE[case]}
    config = KIVConfig(**fields, prefill=prefill)
    fast = FastPool(config).layer_store()
    stores = (fast, ReferencePool(config).layer_store())
    data, start = draw(0, 70, dtype=torch.float64), 0
    for n in (50, 1, 1, 9, 1):
        key, value, query = (part[:, :, start : start + n] for part in data)
        valid = (torch.arange(n) >= n // 3)[None] if padded else None
        for store in stores:
            store.append(key, value, valid)
        outputs = [store.attend(query, scale=SCALE, bound=True) for store in stores]
        assert_close(*outputs)
        start += n
    for store in stores:
        store.crop(40)
        store.append(*data[:2])
    assert_close(*(store.fork().attend(data[2], scale=SCALE) for store in stores))
    assert state_of(fast).recent.nbytes < 1 << 20


@pytest.mark.parametrize("name", ["sink_tokens", "page_tokens", "hot_tokens", "index_channels"])
def test_a_size_that_no_integer_of_a_tensor_holds_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be an integer"):
        KIVConfig(**dict[str, Any]({name: 2**63}))


def test_memory_that_the_machine_does_not_have_is_named(config: KIVConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is torch's own, of a size that no machine has; the store is as before, and the same call works."""
    pool = FastPool(config)
    store, (key, value, query) = pool.layer_store(), draw(0, 40)
    store.append(key[:, :, :20], value[:, :, :20])
    held, real = pool.memory(), Recent._buffers
    monkeypatch.setattr(Recent, "_buffers", lambda self, tokens: real(self, 1 << 50))
    with pytest.raises(KIVBudgetError, match="memory of the machine"):
        store.append(key[:, :, 20:], value[:, :, 20:])
    assert store.length == 20
    assert pool.memory() == held
    monkeypatch.setattr(Recent, "_buffers", real)
    store.append(key[:, :, 20:], value[:, :, 20:])
    other = FastPool(config).layer_store()
    other.append(key[:, :, :20], value[:, :, :20])
    other.append(key[:, :, 20:], value[:, :, 20:])
    assert torch.equal(*(each.attend(query[:, :, 20:], scale=SCALE) for each in (store, other)))
