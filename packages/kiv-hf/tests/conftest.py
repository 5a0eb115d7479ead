"""What the tests of the binding share: tiny random models, and a bound on rounding that the models themselves give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hf_models import TINY_MODELS, TinyModel

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "real: loads a real model from the package index; a minute or two")
    config.addinivalue_line("markers", "gradients: runs with gradients enabled")


@pytest.fixture(params=sorted(TINY_MODELS))
def tiny(request: pytest.FixtureRequest) -> TinyModel:
    """Every tiny model in turn."""
    return TINY_MODELS[request.param]()


@pytest.fixture
def llama() -> TinyModel:
    return TINY_MODELS["llama"]()


@pytest.fixture
def gemma3() -> TinyModel:
    return TINY_MODELS["gemma3"]()


@pytest.fixture(autouse=True)
def _no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    """Serve without gradients, as users do; a test about gradients says so with the marker `gradients`."""
    with torch.set_grad_enabled("gradients" in request.keywords):
        yield
