"""A context of format version 1, made once and kept in contexts_v1/: what was saved then must be read for ever.

Run this file to make it anew, which only a format that was never released may need.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from kiv_hf.contexts.saved import SavedCache, SavedLayer
from kiv_hf.contexts.write import write
from kiv_reference import KIVConfig
from kiv_reference.snapshot import Snapshot, TensorPages

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDER = Path(__file__).with_name("contexts_v1")

CONFIG = KIVConfig(
    hot_tokens=32, sink_tokens=2, page_tokens=32, candidate_tokens=16, retrieve_tokens=8, index_channels=2,
    max_missed_mass=0.125,
)  # fmt: skip


def ramp(start: float, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return numbers that go up by a quarter."""
    count = int(np.prod(shape))
    return (start + torch.arange(count) % 4096 / 4).view(*shape).to(dtype)


class Pages(TensorPages):
    """Three pages of two heads, and an index."""

    def __init__(self) -> None:
        super().__init__(ramp(0, 3, 2, 32, 2), ramp(-100, 3, 2, 32, 3))

    def index(self, start: int, stop: int) -> Mapping[str, torch.Tensor]:
        channels = torch.tensor([0, 1, 1, 1, 1, 1, 1, 1], dtype=torch.int16)
        whole = {
            "codes": torch.arange(3 * 2 * 2 * 16, dtype=torch.int32).view(3, 2, 2, 1, 16),
            "channels": channels.expand(3, 2, 8),
            "step": ramp(1, 3, 2, 8),
            "base": ramp(2, 3, 2, 2),
            "value": ramp(3, 3, 2, 3),
            "error": ramp(4, 3, 2, 2),
        }
        return {name: part[start:stop] for name, part in whole.items()}


def cache() -> SavedCache:
    """Return what is in it: two sequences that share a page, padding, a layer of bfloat16, and one without a store."""
    valid = torch.ones(2, 108, dtype=torch.bool)
    valid[1, :5] = False
    first = Snapshot(
        config=CONFIG,
        pages=np.array([[0, 1], [2, 1]], np.int32),
        cold=Pages(),
        key=ramp(10, 2, 2, 44, 2),
        value=ramp(20, 2, 2, 44, 3),
        valid=valid,
        sampled=torch.tensor([-1.0, 0.5]).repeat(2, 2, 1, 1),
        finite=True,
    )
    second = Snapshot(
        config=CONFIG,
        pages=np.empty((1, 0), np.int32),
        cold=TensorPages(*(torch.empty(0, 1, 32, 4, dtype=torch.bfloat16) for _ in range(2))),
        key=ramp(1, 1, 1, 5, 4, dtype=torch.bfloat16),
        value=ramp(2, 1, 1, 5, 4, dtype=torch.bfloat16),
        valid=None,
        sampled=torch.empty(1, 1, 0, 4, dtype=torch.bfloat16),
        finite=False,
    )
    state: dict[str, Any] = {
        "seen": 108, "window": ramp(7, 2, 3), "flag": True, "none": None, "scale": 0.1, "name": "ä",
        "dtype": torch.bfloat16, "device": torch.device("cuda:1"), "by_layer": {0: torch.tensor([1, 2]), "x": {}},
    }  # fmt: skip
    layers = [SavedLayer("KIVLayer", first, {}), SavedLayer("KIVLayer", second, {}), SavedLayer("Mamba", None, state)]
    return SavedCache(CONFIG, layers, 108, {"weights": "3fa9", "tokenizer": "77c0"}, {"rows": 2})


def main() -> None:
    """Make it, with names that are always the same."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    names = (uuid.UUID(int=number) for number in range(1, 9))
    with mock.patch.object(uuid, "uuid4", side_effect=names):
        write(FOLDER, cache())


if __name__ == "__main__":
    main()
