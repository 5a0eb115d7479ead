"""Every tensor of the packages is made on a device that the source names, whatever torch's default is."""

from __future__ import annotations

import ast
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import TINY_MODELS
from kiv_hf import KIVCache, KIVConfig
from torch.utils._device import _device_constructors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FACTORIES = {constructor.__name__ for constructor in _device_constructors()}
"""The functions of torch that a default device changes; `from_numpy` and `frombuffer` are always in RAM."""


def sources(package: str) -> list[Path]:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return sorted(Path(spec.origin).parent.rglob("*.py"))


def unnamed(text: str) -> list[int]:
    """Return lines of calls to factories that do not name their device."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func).startswith("torch.")
        and node.func.attr in FACTORIES
        and not any(keyword.arg == "device" for keyword in node.keywords)
    ]


@pytest.mark.parametrize("package", ["kiv_reference", "kiv_fast", "kiv_hf"])
def test_every_factory_names_its_device(package: str) -> None:
    found = [(str(path), line) for path in sources(package) for line in unnamed(path.read_text(encoding="utf-8"))]
    assert found == []


def test_a_factory_without_a_device_is_found() -> None:
    assert {"empty", "zeros", "ones", "full", "tensor", "arange", "eye", "randn", "asarray"} <= FACTORIES
    assert unnamed("import torch\n\ntorch.zeros(3)\ntorch.zeros(3, device='cpu')\ntorch.eye(2)") == [3, 5]


@pytest.fixture
def elsewhere() -> Iterator[Callable[[], None]]:
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(None)  # not to what it was: to name it would be a mode for the rest of the process


@pytest.mark.parametrize("implementation", ["reference", "fast", "fast with a disk"])
@pytest.mark.parametrize("retrieve_tokens", [None, 7])
def test_a_model_generates_the_same_text(
    implementation: str, retrieve_tokens: int | None, elsewhere: Callable[[], None], tmp_path: Path
) -> None:
    tiny = TINY_MODELS["llama"]()
    pages: dict[str, Any] = {"hot_tokens": 8, "sink_tokens": 2, "page_tokens": 4, "index_channels": 5}
    config = KIVConfig(**pages, candidate_tokens=12, retrieve_tokens=retrieve_tokens)
    if implementation == "fast with a disk":
        config = replace(config, ram_bytes=30_000, spill_dir=tmp_path)

    def text() -> Any:
        cache = KIVCache(tiny.config, config, impl=implementation.partition(" ")[0])
        return tiny.kiv.generate(
            ids, attention_mask=mask, past_key_values=cache, max_new_tokens=8, do_sample=False, pad_token_id=0
        )

    ids, mask = tiny.ids[:, :40], torch.ones(1, 40, dtype=torch.int64)
    expected = text()
    elsewhere()
    assert torch.equal(text(), expected)
