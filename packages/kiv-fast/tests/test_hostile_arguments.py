"""Whatever a caller hands over is answered by an error of KIV, and what the store holds stays as it was."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import fields, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from fast_helpers import SCALE, draw
from kiv_fast import FastPool
from kiv_reference import KIVConfig, LayerStore, ReferencePool, StorePool
from kiv_reference.errors import KIVConfigError, KIVError, KIVUsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


LENGTH = 40
KEY, VALUE, QUERY = draw(1, LENGTH + 1, batch=2)
NEW = tuple(part[:, :, -1:] for part in (KEY, VALUE, QUERY))
ROWS = torch.tensor([1, 0])


def wrong_tensors(right: torch.Tensor) -> dict[str, Any | str | float | object | torch.Tensor | None]:
    """Return what is no tensor, or not one of these numbers."""
    return {
        "none": None,
        "list": right.tolist(),
        "array": right.numpy(),
        "string": "a",
        "number": 1.0,
        "object": object(),
        "0-d": torch.tensor(1.0),
        "flat": right.flatten(),
        "empty": right[:0],
        "meta": right.to("meta"),
        "sparse": right.to_sparse(),
        "nested": torch.nested.nested_tensor([right[0], right[1]]),
        "quantised": torch.quantize_per_tensor(right.float(), 0.1, 0, torch.qint8),
        "complex": right.to(torch.complex64),
        "bool": right > 0,
        "int": right.to(torch.int32),
        "double": right.double(),
        "wide": torch.cat([right, right], dim=-1),
        "batch": right[:1],
        "nan": torch.full_like(right, torch.nan),
    }


NUMBERS = {
    "string": "a",
    "nan": float("nan"),
    "infinite": float("inf"),
    "zero": 0,
    "negative": -1.0,
    "bool": True,
    "list": [1.0],
    "array": np.ones(2),
    "complex": 1j,
    "huge": 10**400,
    "fraction": Fraction(1, 2),
    "vector": torch.ones(2),
    "meta": torch.ones((), device="meta"),
    "object": object(),
}
INTEGERS = {
    "fraction": 2.5,
    "whole float": 2.0,
    "string": "a",
    "none": None,
    "bool": True,
    "list": [1],
    "array": np.ones(2, dtype=np.int64),
    "numpy float": np.float64(2),
    "tensor": torch.tensor(2.5),
    "bool tensor": torch.tensor(True),
    "vector": torch.tensor([1, 2]),
    "negative": -1,
    "huge": -(2**70),
    "object": object(),
}
SINKS = {
    "list": [0.0] * 4,
    "array": np.zeros(4, dtype=np.float32),
    "number": 1.0,
    "string": "a",
    "size": torch.zeros(3),
    "0-d": torch.tensor(0.0),
    "matrix": torch.zeros(4, 4),
    "batch": torch.zeros(1, 4, 1),
    "int": torch.zeros(4, dtype=torch.int64),
    "bool": torch.zeros(4, dtype=torch.bool),
    "complex": torch.zeros(4, dtype=torch.complex64),
    "meta": torch.zeros(4, device="meta"),
    "sparse": torch.zeros(4).to_sparse(),
}
MASKS = {
    "list": [[True], [True]],
    "array": np.ones((2, 1), dtype=bool),
    "float": torch.ones(2, 1),
    "int": torch.ones(2, 1, dtype=torch.int64),
    "size": torch.ones(2, 2, dtype=torch.bool),
    "flat": torch.ones(2, dtype=torch.bool),
    "number": True,
    "string": "a",
    "meta": torch.ones(2, 1, dtype=torch.bool, device="meta"),
    "sparse": torch.ones(2, 1, dtype=torch.bool).to_sparse(),
}
WRONG_ROWS = {
    "none": None,
    "list": [1, 0],
    "tuple": (1, 0),
    "array": np.array([1, 0]),
    "number": 1,
    "string": "a",
    "0-d": torch.tensor(1),
    "matrix": torch.tensor([[1, 0]]),
    "int32": ROWS.int(),
    "float": ROWS.float(),
    "bool": ROWS.bool(),
    "complex": ROWS.to(torch.complex64),
    "negative": torch.tensor([0, -1]),
    "large": torch.tensor([0, 2]),
    "nothing": ROWS[:0],
    "meta": ROWS.to("meta"),
    "sparse": ROWS.to_sparse(),
}


def table() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Name and call of every case."""
    key, value, query = NEW
    parts = {"key": key, "value": value, "query": query}
    for name, right in parts.items():
        for kind, wrong in wrong_tensors(right).items():
            if (name, kind) == ("value", "nan"):
                continue  # a value may be anything (SPEC 2.5)
            if name == "query":
                yield f"query {kind}", lambda s, wrong=wrong: s.attend(wrong, scale=SCALE)
            else:
                pair = (wrong, value) if name == "key" else (key, wrong)
                yield f"{name} {kind}", lambda s, pair=pair: s.append(*pair)
    for kind, wrong in MASKS.items():
        yield f"valid {kind}", lambda s, wrong=wrong: s.append(key, value, wrong)
    for kind, wrong in (NUMBERS | {"none": None}).items():
        yield f"scale {kind}", lambda s, wrong=wrong: s.attend(query, scale=wrong)
    for kind, wrong in NUMBERS.items():
        yield f"softcap {kind}", lambda s, wrong=wrong: s.attend(query, scale=SCALE, softcap=wrong)
    for kind, wrong in SINKS.items():
        yield f"sink_logits {kind}", lambda s, wrong=wrong: s.attend(query, scale=SCALE, sink_logits=wrong)
    for wrong in ("yes", 1, None, torch.ones(2)):
        yield f"bound {wrong}", lambda s, wrong=wrong: s.attend(query, scale=SCALE, bound=wrong)
    for kind, wrong in INTEGERS.items():
        yield f"crop {kind}", lambda s, wrong=wrong: s.crop(wrong)
        yield f"repeat_interleave {kind}", lambda s, wrong=wrong: s.repeat_interleave(wrong)
    yield "crop long", lambda s: s.crop(LENGTH + 1)
    yield "repeat_interleave zero", lambda s: s.repeat_interleave(0)
    for kind, wrong in WRONG_ROWS.items():
        yield f"reorder {kind}", lambda s, wrong=wrong: s.reorder(wrong)
        yield f"select {kind}", lambda s, wrong=wrong: s.select(wrong)


TABLE = dict(table())
POOLS: dict[str, Callable[[KIVConfig], StorePool]] = {"reference": ReferencePool, "fast": FastPool}


def filled(pool: StorePool) -> LayerStore:
    """Return a store in the middle of its work: the last token is appended, and not attended."""
    store = pool.layer_store()
    store.append(KEY[:, :, : LENGTH - 1], VALUE[:, :, : LENGTH - 1])
    store.append(KEY[:, :, LENGTH - 1 : LENGTH], VALUE[:, :, LENGTH - 1 : LENGTH])
    return store


def test_the_table_is_long() -> None:
    assert len(TABLE) >= 150


@pytest.mark.parametrize("implementation", POOLS)
@pytest.mark.parametrize("tiers", ["RAM", "disk"])
def test_every_hostile_call_is_refused_by_name(
    implementation: str, tiers: str, config: KIVConfig, tmp_path: Path
) -> None:
    if tiers == "disk":
        config = replace(config, ram_bytes=30_000, spill_dir=tmp_path)
    pool, twin = POOLS[implementation](config), POOLS[implementation](config)
    store, other = filled(pool), filled(twin)
    before = store.length, store.memory(), pool.memory(), store.tokens()
    for name, call in TABLE.items():
        with pytest.raises(Exception) as caught:  # noqa: PT011
            call(store)
        assert isinstance(caught.value, KIVError), (name, caught.value)
        assert (store.length, store.memory(), pool.memory(), store.tokens()) == before, name
    query = QUERY[:, :, LENGTH - 1 : LENGTH]
    assert torch.equal(store.attend(query, scale=SCALE), other.attend(query, scale=SCALE))


@pytest.mark.parametrize("implementation", POOLS)
def test_an_empty_store_refuses_them_too(implementation: str, config: KIVConfig) -> None:
    store: Any = POOLS[implementation](config).layer_store()
    with pytest.raises(KIVError):
        store.attend("a", scale=SCALE)
    for wrong in (None, [0], "a", np.zeros(1)):
        with pytest.raises(KIVError):
            store.select(wrong)


@pytest.mark.parametrize("implementation", POOLS)
def test_integers_of_other_kinds_are_integers(implementation: str, config: KIVConfig) -> None:
    store: Any = filled(POOLS[implementation](config))
    store.crop(np.int64(30))
    store.crop(torch.tensor(20))
    store.repeat_interleave(np.int32(2))
    assert store.length == 20
    assert type(store.length) is int


@pytest.mark.parametrize("implementation", POOLS)
@pytest.mark.parametrize("what", ["store", "pool"])
@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, pickle.dumps, lambda it: torch.save(it, io.BytesIO())],
    ids=["copy", "deepcopy", "pickle", "torch.save"],
)
def test_a_copy_is_refused_and_the_original_goes_on(
    implementation: str, what: str, copied: Callable[..., Any], config: KIVConfig
) -> None:
    pool = POOLS[implementation](config)
    store, other = filled(pool), filled(POOLS[implementation](config))
    before = pool.memory()
    with pytest.raises(KIVUsageError, match="copied"):
        copied(store if what == "store" else pool)
    assert pool.memory() == before
    query = QUERY[:, :, LENGTH - 1 : LENGTH]
    assert torch.equal(store.attend(query, scale=SCALE), other.attend(query, scale=SCALE))


INTEGER_FIELDS = [field.name for field in fields(KIVConfig) if field.type in ("int", "int | None")]


@pytest.mark.parametrize("name", INTEGER_FIELDS)
@pytest.mark.parametrize("value", [2**63, 2**64, 10**30])
def test_an_integer_beyond_what_a_tensor_holds_is_refused(name: str, value: int) -> None:
    with pytest.raises(KIVConfigError, match=name):
        KIVConfig(**dict[str, Any]({name: value}))


@pytest.mark.parametrize("implementation", POOLS)
@pytest.mark.parametrize("name", sorted({*INTEGER_FIELDS} - {"sink_tokens", "page_tokens"}))  # which take room
def test_the_largest_integers_work(implementation: str, name: str, config: KIVConfig, tmp_path: Path) -> None:
    if name == "retrieve_tokens":
        config = replace(config, candidate_tokens=2**63 - 1)
    config = replace(config, spill_dir=tmp_path, **{name: 2**63 - 1})
    store = filled(POOLS[implementation](config))
    output = store.attend(QUERY[:, :, LENGTH - 1 : LENGTH], scale=SCALE)
    assert torch.isfinite(output).all()
    store.crop(12)
    assert store.length == 12
