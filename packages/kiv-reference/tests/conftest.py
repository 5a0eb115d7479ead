"""What the tests of the reference share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from kiv_reference import KIVConfig, ReferencePool

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiv_reference.store import ReferenceStore


@pytest.fixture
def tiny() -> KIVConfig:
    """Two sinks, pages of two tokens, a hot window of two: cold pages appear from six tokens on."""
    return KIVConfig(
        hot_tokens=2,
        sink_tokens=2,
        page_tokens=2,
        candidate_tokens=1,
        retrieve_tokens=1,
        tail="none",
    )


@pytest.fixture
def store_of() -> Callable[..., ReferenceStore]:
    """A store of one sequence and one KV head, holding ``keys [T, D]`` and ``values [T, DV]``, appended one by one."""

    def build(config: KIVConfig, keys: Any, values: Any, valid: torch.Tensor | None = None) -> ReferenceStore:
        store = ReferencePool(config).layer_store()
        keys, values = torch.as_tensor(keys).float(), torch.as_tensor(values).float()
        for t in range(keys.shape[0]):
            mask = None if valid is None else torch.tensor([[valid[t]]])
            store.append(keys[None, None, t : t + 1], values[None, None, t : t + 1], mask)
        return store

    return build
