"""The comparison with the stock cache: in float64 where the model can, so that the least fault shows (SPEC 4.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from kiv_fast.store import FastStore

from .compare import compare, stock_model

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    """KIV computes none."""
    with torch.no_grad():
        yield


@pytest.mark.parametrize(("model_type", "dtype"), [("llama", torch.float64), ("gptj", torch.float32)])
def test_a_model_that_attends_in_float32_is_compared_in_float32(model_type: str, dtype: torch.dtype) -> None:
    """Its own rounding would else be taken for KIV's fault."""
    assert stock_model(model_type)[0].dtype == dtype


@pytest.mark.parametrize(("model_type", "fault"), [("llama", 1e-8), ("gptj", 1e-2)])
def test_outputs_that_are_off_make_the_row_wrong(
    monkeypatch: pytest.MonkeyPatch, model_type: str, fault: float
) -> None:
    """In float64 a fault of a hundred-millionth, which float32 could not tell from rounding."""
    attend = FastStore.attend

    def off(self: FastStore, query: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return attend(self, query, **arguments) * (1 + fault)

    monkeypatch.setattr(FastStore, "attend", off)
    outcome = compare(model_type)
    assert (outcome.verdict, outcome.ratio > 1) == ("wrong", True), outcome
