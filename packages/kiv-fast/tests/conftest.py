"""What the tests of the tiered implementation share."""

from dataclasses import replace

import pytest
from fast_helpers import draw, feed, index_bytes
from faulty_disk import CHUNKS
from kiv_fast import FastPool
from kiv_reference import KIVConfig


@pytest.fixture
def config() -> KIVConfig:
    """Small pages and windows, so that most tokens are cold."""
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
def small(config, tmp_path):
    """So little RAM that most pages of `CHUNKS` live on disk."""
    whole = FastPool(config).layer_store()
    feed(whole, draw(5, sum(CHUNKS)), CHUNKS)
    return replace(config, ram_bytes=index_bytes(whole) + 2_500, spill_dir=tmp_path)
