"""What the tests of the tiered implementation share."""

import pytest
from kiv_reference import KIVConfig


@pytest.fixture
def config() -> KIVConfig:
    """Small pages and windows, so that most tokens are cold."""
    return KIVConfig(
        hot_tokens=8, sink_tokens=2, page_tokens=4, span_pages=3, candidate_pages=5, retrieve_tokens=7, prefill="exact"
    )
