"""What layers hold beside a snapshot, as it is saved and read again."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from contexts_helpers import (
    CPU,
    SMALL,
    of_cache,
    on_cpu,
    read_all,
)
from kiv_hf.contexts.read import read
from kiv_hf.contexts.saved import SavedCache, SavedLayer
from kiv_hf.contexts.write import write
from kiv_reference.errors import KIVShapeError, KIVUsageError

if TYPE_CHECKING:
    from pathlib import Path


STATE: dict[str, Any] = {
    "none": None, "yes": True, "number": -(2**63), "real": -0.1, "small": 5e-324, "inf": float("-inf"),
    "nan": float("nan"), "zero": -0.0, "text": 'ünï\n"\ud800', "dtype": torch.float8_e4m3fn, "device": CPU,
    "tensors": {n: torch.arange(3).to(dtype) for n, dtype in enumerate((torch.bool, torch.int8, torch.uint16))},
    "complex": torch.tensor([1 + 2j]).conj(), "strided": torch.arange(12).view(3, 4).T, "empty": torch.empty(0, 3),
    "number of its own": torch.tensor(7.5, dtype=torch.bfloat16), "eight": torch.ones(2).to(torch.float8_e5m2),
    "nested": {"a": {0: {"b": torch.randn(2)}, "0": 1}},
}  # fmt: skip


def test_states_of_every_type(tmp_path: Path) -> None:
    """Of layers without a store, and of the cache."""
    layers = [SavedLayer("Mamba", None, STATE), SavedLayer("Window", None, {})]
    saved = SavedCache(SMALL, layers, 0, {"a\n": "ü"}, STATE)
    write(tmp_path / "x", saved)
    assert read_all(tmp_path / "x") == of_cache(saved)
    write(tmp_path / "x", SavedCache(SMALL, [], 0, {}, {}))
    assert read(tmp_path / "x", on_cpu).layers == []


@pytest.mark.parametrize(
    "state",
    [
        {"a": [1]}, {"a": 2**63}, {"a": {True: 1}}, {"a": {1.5: 1}}, {"a": object()},
        {"a": torch.ones(2).to_sparse()}, {"a": torch.empty(1, dtype=torch.complex128)},
        {"a": torch.ones(1).to("meta")},
    ],
)  # fmt: skip
def test_other_states_are_refused_before_anything_is_written(state: Any, tmp_path: Path) -> None:
    with pytest.raises((KIVUsageError, KIVShapeError)):
        write(tmp_path / "x", SavedCache(SMALL, [SavedLayer("L", None, state)], 0, {}, {}))
    assert not os.listdir(tmp_path)


def deep(depth: int) -> dict[str, Any]:
    return {"a": deep(depth - 1)} if depth else {}


def test_dictionaries_within_each_other(tmp_path: Path) -> None:
    write(tmp_path / "x", SavedCache(SMALL, [], 0, {}, deep(15)))
    assert read(tmp_path / "x", on_cpu).state == deep(15)
    with pytest.raises(KIVUsageError, match="at most 16"):
        write(tmp_path / "x", SavedCache(SMALL, [], 0, {}, deep(16)))
