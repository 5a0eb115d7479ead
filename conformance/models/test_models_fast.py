"""The check of fast against reference fails where it must (SPEC 11.2)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kiv_fast import FastPool
from kiv_hf import use_kiv
from kiv_hf.compare.pool import KIVDivergenceError

from .catalog import tiny_model
from .compare import compare
from .fast import compare_fast
from .feeds import PIECES, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kiv_reference.contract import LayerStore, PoolFactory

MODELS = ("llama", "deepseek_v3", "gpt_oss", "qwen3_next", "bloom", "blip")


def obeying(**change: Any) -> PoolFactory:
    """Return an implementation that obeys another configuration than it was given."""
    return lambda config: FastPool(dataclasses.replace(config, **change))


def spoilt(spoil: Callable[[LayerStore], None]) -> PoolFactory:
    """Return an implementation whose every store went through `spoil`."""

    class Spoilt(FastPool):
        def layer_store(self) -> Any:
            store = super().layer_store()
            spoil(store)
            return store

    return Spoilt


def heads_swapped(store: Any) -> None:
    """Give each KV head the keys of its neighbour."""
    append = store.append
    store.append = lambda key, value, valid=None: append(key.roll(1, dims=1), value, valid)


def values_late(store: Any) -> None:
    """Give each token the value of the one before it in the call."""
    append = store.append
    store.append = lambda key, value, valid=None: append(key, value.roll(1, dims=2), valid)


def outputs_off(store: Any) -> None:
    """Make outputs wrong in the fourth digit."""
    attend = store.attend
    store.attend = lambda query, **arguments: attend(query, **arguments) * 1.0001


FAULTS = {
    "one token too few": ("4.6", obeying(retrieve_tokens=4)),
    "one candidate too few": ("4.4", obeying(candidate_tokens=6)),
    "one channel": ("4.4", obeying(index_channels=1)),
    "hot too short": ("2.2", obeying(hot_tokens=4)),
    "no tail": ("5.1", obeying(tail="none")),
    "exact prefill": ("7.2", obeying(prefill="exact")),
    "another head's keys": ("5.1", spoilt(heads_swapped)),
    "another token's values": ("5.1", spoilt(values_late)),
    "outputs off": ("5.1", spoilt(outputs_off)),
}


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """KIV computes none."""
    with torch.no_grad():
        yield


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str) -> None:
    """And the clause that it breaks is named."""
    clause, broken = FAULTS[fault]
    model = use_kiv(tiny_model("llama", None))
    with pytest.raises(KIVDivergenceError, match=f"SPEC {clause}"):
        compare_fast(model, text(model), ["chunks"], candidate=broken)


@pytest.mark.parametrize("model_type", MODELS)
def test_a_fault_is_found_on_every_kind_of_model(model_type: str) -> None:
    """However the model reaches its cache: adapters, sinks, patches, a text part."""
    model = use_kiv(tiny_model(model_type, None))
    ids = text(model)
    assert compare_fast(model, ids, ["chunks"]) > 0
    with pytest.raises(KIVDivergenceError, match=r"SPEC 4\.6"):
        compare_fast(model, ids, ["chunks"], candidate=obeying(retrieve_tokens=4))


def test_a_fault_makes_the_row_wrong() -> None:
    """The page would say so."""
    outcome = compare("llama", obeying(retrieve_tokens=4))
    assert outcome.verdict == "wrong"
    assert outcome.reason.startswith("fast against reference: SPEC 4.6")


def test_only_choices_are_counted() -> None:
    """Chunks end at 17, 18, 20, 33 and 40; from position 18 on there are more cold tokens than candidates."""
    assert PIECES["chunks"] == [17, 1, 2, 13, 7]
    blocks = 1 + 4 + 2  # of at most 4 queries, in the last three chunks
    model = use_kiv(tiny_model("llama", None))
    heads = model.config.num_key_value_heads * model.config.num_hidden_layers
    assert compare_fast(model, text(model), ["chunks"]) == blocks * heads
