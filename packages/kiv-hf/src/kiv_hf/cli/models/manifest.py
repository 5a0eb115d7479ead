"""What a finished conversion consists of, so that a damaged one is noticed and made again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from pathlib import Path

NAME = "kiv-conversion.json"

HASHED_BYTES = 64 << 20
"""Larger files, the weights, are checked by their size alone: hashing them would take as long as loading them."""


def write_manifest(folder: Path) -> None:
    """Note the files of `folder`, which is complete."""
    (folder / NAME).write_text(json.dumps(_files(folder)), encoding="utf-8")


def is_intact(folder: Path) -> bool:
    """Tell whether `folder` holds what was noted when it was finished."""
    try:
        return json.loads((folder / NAME).read_text(encoding="utf-8")) == _files(folder)
    except (OSError, ValueError):
        return False


def _files(folder: Path) -> dict[str, list[int | str]]:
    return {file.name: _facts(file) for file in sorted(folder.iterdir()) if file.name != NAME}


def _facts(file: Path) -> list[int | str]:
    size = file.stat().st_size
    return [size] if size > HASHED_BYTES else [size, xxhash.xxh3_128_hexdigest(file.read_bytes())]
