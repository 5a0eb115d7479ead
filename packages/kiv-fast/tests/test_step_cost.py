"""What a decode step of one store costs, counted: operations of torch, calls into the library, calls of Python."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kiv_fast
import pytest
import torch
from kiv_fast import FastPool
from kiv_fast.ops import library
from kiv_reference import KIVConfig
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from kiv_fast.store import FastStore

MOST_OPERATIONS = {"cpu": 12, "torch": 104}
"""Of torch and of the library, of a retrieving step. Those of torch, of which a third are views: the token into its
window 7, the query 7, estimates 25, candidates 7, their scores 7, the selection 6 and what of it is late 2, sinks and
hot tokens 10, the rows of the selection 5, its shift 12, the tail 6, the softmax 4, the output 6."""

MOST_CALLS = {"cpu": 75, "torch": 135}
"""Of functions of kiv_fast; `kiv_hf` has its own, at most 45 in a test beside its code: 120 together."""

PATH = ("guard", "store", "call", "retrieval.block", "retrieval.candidates")
"""Modules through which a query of a retrieving step comes to the operations."""

HEADS, GROUPS, WIDTH, SCALE = 3, 3, 64, 0.125


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def filled(ops: Any, length: int, dtype: torch.dtype) -> tuple[FastStore, tuple[torch.Tensor, torch.Tensor]]:
    """Return a store of `length` tokens that has answered a step, and what a step asks."""
    store = FastPool(KIVConfig(), ops=ops).layer_store()
    generator = torch.Generator().manual_seed(length)
    key, query = (
        torch.randn(1, heads, length, WIDTH, generator=generator).to(dtype) for heads in (HEADS, HEADS * GROUPS)
    )
    step = key[:, :, -1:], query[:, :, -1:]
    for start in range(0, length, 4096):
        store.append(*(2 * (key[:, :, start : start + 4096],)))
        if start == 0:
            store.attend(query[:, :, :4096], scale=SCALE)
    decode(store, step)
    decode(store, step)
    return store, step


@torch.no_grad()
def decode(store: FastStore, step: tuple[torch.Tensor, torch.Tensor]) -> None:
    key, query = step
    store.append(key, key)
    store.attend(query, scale=SCALE)


@pytest.fixture
def asked_of_library(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls into the library, by name."""
    counts, found = Counter(), library.load()

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            counts[f"library.{name}"] += 1
            return call(*arguments)

        return counted

    for name in library._CALLS if found is not None else ():
        monkeypatch.setattr(found, name, counting(name, getattr(found, name)))
    return counts


EVERY = [
    (ops, dtype, length)
    for ops in MOST_OPERATIONS
    for dtype in (torch.float32, torch.bfloat16)
    for length in (8192, 32768)
    if ops == "torch" or library.load() is not None
]


@pytest.mark.parametrize(("ops", "dtype", "length"), EVERY)
def test_operations_of_a_step(ops: str, dtype: torch.dtype, length: int, asked_of_library: Counter[str]) -> None:
    store, step = filled(ops, length, dtype)
    asked_of_library.clear()
    with Operations() as operations:
        decode(store, step)
    counts = operations.counts + asked_of_library
    assert store.report.blocks[0].mode == "retrieve"
    assert (ops == "cpu") == bool(asked_of_library)
    assert counts.total() <= MOST_OPERATIONS[ops], counts.most_common()


@pytest.mark.parametrize(("ops", "dtype", "length"), EVERY)
def test_calls_of_a_step(ops: str, dtype: torch.dtype, length: int) -> None:
    store, step = filled(ops, length, dtype)
    calls, folder = Counter(), str(Path(kiv_fast.__file__).parent)

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(folder):
            calls[frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        decode(store, step)
    finally:
        sys.setprofile(None)
    assert calls["attend"] > 0
    assert calls.total() <= MOST_CALLS[ops], calls.most_common(20)


@pytest.mark.parametrize(("ops", "dtype", "length"), EVERY)
def test_modules_between_a_query_and_the_operations(ops: str, dtype: torch.dtype, length: int) -> None:
    store, (key, query) = filled(ops, length, dtype)
    store.append(key, key)
    modules, folder = set(), Path(kiv_fast.__file__).parent

    def note(frame: FrameType | None, event: str, _: Any) -> None:
        """Note who calls, directly or not, what is in `ops`."""
        chain = []
        while event == "call" and frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(folder):
                chain.append(".".join(path.relative_to(folder).with_suffix("").parts))
            frame = frame.f_back
        if chain and chain[0].startswith("ops."):
            modules.update(module for module in chain if not module.startswith("ops."))

    sys.setprofile(note)
    try:
        store.attend(query, scale=SCALE)
    finally:
        sys.setprofile(None)
    assert store.report.blocks[0].mode == "retrieve"
    assert modules == set(PATH)
