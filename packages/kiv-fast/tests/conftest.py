"""What the tests of the tiered implementation share."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from fast_helpers import draw, feed, index_bytes
from faulty_disk import CHUNKS
from kiv_fast import FastPool
from kiv_reference import KIVConfig

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def config() -> KIVConfig:
    """Return small pages and windows, so that most tokens are cold."""
    return KIVConfig(
        hot_tokens=8,
        sink_tokens=2,
        page_tokens=4,
        index_channels=6,
        candidate_tokens=20,
        retrieve_tokens=7,
        prefill="exact",
    )


@pytest.fixture
def small(config: KIVConfig, tmp_path: Path) -> KIVConfig:
    """Return so little RAM that most pages of `CHUNKS` live on disk."""
    whole = FastPool(config).layer_store()
    feed(whole, draw(5, sum(CHUNKS)), CHUNKS)
    return replace(config, ram_bytes=index_bytes(whole) + 2_500, spill_dir=tmp_path)
