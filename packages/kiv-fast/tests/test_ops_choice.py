"""Which operations a pool takes: by name, or those that can serve."""

from __future__ import annotations

import _ctypes
from pathlib import Path

import pytest
import torch
from kiv_fast import FastPool
from kiv_fast.ops import library
from kiv_reference import KIVConfig
from kiv_reference.errors import KIVUnsupportedError, KIVUsageError


@pytest.mark.skipif(library.load() is None, reason="kiv-fast was built without a C compiler")
def test_their_name_stands_for_them_alone() -> None:
    store = FastPool(KIVConfig(), ops="cpu").layer_store()
    numbers = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    with pytest.raises(KIVUnsupportedError, match="float64 on cpu, 4 channels"):
        store.append(numbers, numbers)


def test_unknown_operations_are_refused() -> None:
    with pytest.raises(KIVUsageError, match="'gpu'"):
        FastPool(KIVConfig(), ops="gpu")  # pyright: ignore[reportArgumentType]


ANOTHER = Path(_ctypes.__file__).read_bytes()
"""A library, but not with these operations: an earlier version's would lack some."""


@pytest.mark.parametrize(
    ("content", "why"), [(None, "built without a C compiler"), (b"text", "does not load"), (ANOTHER, "does not load")]
)
def test_without_a_library_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, why: str
) -> None:
    path = tmp_path / "libkiv.so"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("KIV_LIBRARY", str(path))
    library.load.cache_clear()
    try:
        with pytest.raises(KIVUnsupportedError, match=why):
            FastPool(KIVConfig(), ops="cpu")
        assert FastPool(KIVConfig()).layer_store() is not None
    finally:
        monkeypatch.undo()
        library.load.cache_clear()
