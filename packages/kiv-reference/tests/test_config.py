from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from kiv_reference import KIVConfig
from kiv_reference.errors import KIVConfigError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hot_tokens", -1),
        ("hot_tokens", 1.5),
        ("sink_tokens", True),
        ("page_tokens", 0),
        ("index_channels", "16"),
        ("candidate_tokens", 0),
        ("retrieve_tokens", 0),
        ("group", "softmax"),
        ("tail", True),
        ("prefill", "Exact"),
        ("query_block_tokens", 0),
        ("exact_suffix_tokens", -1),
        ("max_missed_mass", 0.0),
        ("max_missed_mass", 1.0),
        ("max_missed_mass", float("nan")),
        ("device_bytes", -1),
        ("ram_bytes", 0.5),
        ("disk_bytes", "1G"),
        ("spill_dir", 3),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_itself(field: str, value: Any) -> None:
    with pytest.raises(KIVConfigError, match=field) as error:
        KIVConfig(**{field: value})
    assert repr(value) in str(error.value)


def test_more_tokens_than_candidates_are_refused() -> None:
    with pytest.raises(KIVConfigError, match="candidate_tokens"):
        KIVConfig(candidate_tokens=8, retrieve_tokens=9)
    assert KIVConfig(candidate_tokens=8, retrieve_tokens=8).retrieve_tokens == 8


def test_exact_mode_allows_exact_prefill_only() -> None:
    assert KIVConfig(retrieve_tokens=None).exact
    with pytest.raises(KIVConfigError, match="exact mode"):
        KIVConfig(retrieve_tokens=None, prefill="window")


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        KIVConfig().hot_tokens = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("boundary", "pages"), [(0, 0), (5, 0), (6, 1), (7, 1), (8, 2), (100, 48)])
def test_cold_pages_by_hand(boundary: int, pages: int) -> None:
    # floor((boundary - 2 hot - 2 sinks) / 2)
    config = KIVConfig(hot_tokens=2, sink_tokens=2, page_tokens=2)
    assert config.cold_pages(boundary) == pages
