"""What the tests of the binding share: tiny random models, and a bound on rounding that the models themselves give."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hf_models import TINY_MODELS, TinyModel
from transformers import LlamaConfig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


@pytest.fixture(scope="session")
def llama8b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration of Llama-3.1-8B's geometry, and nothing else."""
    folder = tmp_path_factory.mktemp("llama")
    LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=131072, tie_word_embeddings=False, dtype="bfloat16",
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def _no_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    """Serve without gradients, as users do; a test about gradients says so with the marker `gradients`."""
    with torch.set_grad_enabled("gradients" in request.keywords):
        yield
