"""A cache as an object: what it shows, how it ends, and that it is neither copied by halves nor pickled."""

from __future__ import annotations

import copy
import io
import pickle
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kiv_hf import KIVCache
from kiv_reference.errors import KIVUsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hf_models import TinyModel


def test_repr_tells_configuration_length_tiers_and_bytes(llama: TinyModel) -> None:
    cache = llama.cache()
    llama.kiv(llama.ids, past_key_values=cache)
    shown, memory = repr(cache), cache.memory()
    assert f"{llama.ids.shape[1]} tokens" in shown
    assert f"device {memory.device} B, ram {memory.ram} B, disk 0 B" in shown
    assert "hot_tokens=8" in shown
    assert memory.ram > 0


def test_the_end_of_a_with_block_closes_the_cache(llama: TinyModel) -> None:
    with llama.cache() as cache:
        llama.kiv(llama.ids, past_key_values=cache)
    assert repr(cache) == "KIVCache(closed)"
    assert cache.pool.memory() == (0, 0, 0)
    with pytest.raises(KIVUsageError, match="closed"):
        llama.kiv(llama.ids, past_key_values=cache)


@pytest.mark.parametrize("how", [copy.copy, pickle.dumps, lambda cache: torch.save(cache, io.BytesIO())])
def test_copies_and_pickles_are_refused(llama: TinyModel, how: Callable[..., Any]) -> None:
    cache = llama.cache()
    llama.kiv(llama.ids[:, :50], past_key_values=cache)
    with pytest.raises(KIVUsageError, match="a KIVCache cannot be"):
        how(cache)
    assert llama.kiv(llama.ids[:, 50:], past_key_values=cache).logits.isfinite().all()


def test_a_deep_copy_is_a_fork(llama: TinyModel) -> None:
    cache = llama.cache()
    llama.kiv(llama.ids[:, :50], past_key_values=cache)
    twin = copy.deepcopy(cache)
    logits = [llama.kiv(llama.ids[:, 50:], past_key_values=one).logits for one in (cache, twin)]
    assert torch.equal(*logits)


def test_a_configuration_must_be_one(llama: TinyModel) -> None:
    with pytest.raises(KIVUsageError, match="must be a KIVConfig"):
        KIVCache(llama.config, {"hot_tokens": 512})  # pyright: ignore[reportArgumentType]
