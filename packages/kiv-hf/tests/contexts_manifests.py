"""Manifests that a test makes up, with the checksum that they should have."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import xxhash
from contexts_helpers import cache_of, filled, on_cpu
from kiv_hf.contexts.read import read
from kiv_hf.contexts.write import write
from kiv_reference.errors import KIVBudgetError, KIVCorruptError, KIVMismatchError, KIVStorageError, KIVUsageError

if TYPE_CHECKING:
    from pathlib import Path


NAMED = (KIVCorruptError, KIVStorageError, KIVMismatchError, KIVUsageError, KIVBudgetError)
PREFIX = 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "x", cache_of(filled(36, padding=5), indexed=True, row=torch.arange(3), scale={"a": {1: 0.5}}))
    return tmp_path / "x"


def sealed(body: bytes) -> bytes:
    """Return a manifest with the checksum that it should have; `body` follows it."""
    return b'{"xxh3_64":"' + f"{xxhash.xxh3_64_intdigest(body):016x}".encode() + b'",' + body


def manifest_of(folder: Path) -> Any:
    return json.loads(b"{" + (folder / "MANIFEST.json").read_bytes()[PREFIX:])


def put(folder: Path, manifest: Any) -> None:
    body = json.dumps(manifest, separators=(",", ":")).encode()[1:]
    (folder / "MANIFEST.json").write_bytes(sealed(body))


def read_all(folder: Path) -> None:
    """Read all there is, whatever the numbers are."""
    for layer in read(folder, on_cpu).layers:
        if layer.snapshot is not None:
            for values in (False, True):
                layer.snapshot.read_pages(values, 0, len(layer.snapshot.cold))
            layer.snapshot.cold.index(0, len(layer.snapshot.cold))
