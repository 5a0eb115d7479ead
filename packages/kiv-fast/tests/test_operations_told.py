"""`FastPool.operations`: a pool says by what its stores compute."""

from __future__ import annotations

import pytest
import torch
from fast_helpers import draw, feed
from kiv_fast import FastPool
from kiv_fast.ops import load
from kiv_reference import KIVConfig
from kiv_reference.errors import KIVUnsupportedError

library = load()
COMPILED = "torch" if library is None else f"cpu ({library.instructions})"


@pytest.fixture
def none_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiv_fast.ops.choice.load", lambda: None)


def test_what_float32_would_get_before_there_are_tokens() -> None:
    pool = FastPool(KIVConfig())
    assert pool.operations == COMPILED
    pool.layer_store()
    assert pool.operations == COMPILED


def test_what_its_stores_use() -> None:
    pool = FastPool(KIVConfig())
    wide = pool.layer_store()
    feed(wide, draw(0, 8, dtype=torch.float64), [8])
    assert pool.operations == "torch"
    narrow = pool.layer_store()
    feed(narrow, draw(0, 8, dtype=torch.bfloat16), [8])
    assert pool.operations == ("torch" if library is None else f"{COMPILED}, torch")
    del wide
    assert pool.operations == COMPILED


def test_those_that_were_named() -> None:
    assert FastPool(KIVConfig(), ops="torch").operations == "torch"


def test_without_compiled_ones(none_compiled: None) -> None:
    assert FastPool(KIVConfig()).operations == "torch"
    with pytest.raises(KIVUnsupportedError, match="install a wheel that has them"):
        FastPool(KIVConfig(), ops="cpu")


@pytest.mark.skipif(library is None, reason="this installation has no compiled operations")
def test_compiled_ones_never_stand_for_others() -> None:
    pool = FastPool(KIVConfig(), ops="cpu")
    assert pool.operations == COMPILED
    with pytest.raises(KIVUnsupportedError, match="serves float32, bfloat16 and float16 on a CPU"):
        feed(pool.layer_store(), draw(0, 8, dtype=torch.float64), [8])
