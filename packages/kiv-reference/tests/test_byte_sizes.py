"""Byte budgets as people write them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from kiv_reference import KIVConfig
from kiv_reference.errors import KIVConfigError
from kiv_reference.sizes import parse_bytes

BUDGETS = ["device_bytes", "ram_bytes", "disk_bytes"]


@pytest.mark.parametrize("name", BUDGETS)
@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("512MiB", 512 * 2**20), ("2 GB", 2 * 10**9), (" 1.5kib ", 1536), ("9007199254740993", 2**53 + 1)],
)
def test_a_size_becomes_its_number(name: str, text: str, count: int) -> None:
    config = KIVConfig(**dict[str, Any]({name: text}))
    assert getattr(config, name) == count
    assert type(getattr(config, name)) is int
    assert config == KIVConfig(**dict[str, Any]({name: count}))
    assert hash(config) == hash(dataclasses.replace(config))


@pytest.mark.parametrize("name", BUDGETS)
@pytest.mark.parametrize("text", ["", "much", "-1", "1G", "1e9", "nan", "inf", "0x10", "1,000", "9" * 5000])
def test_what_is_no_size_is_refused(name: str, text: str) -> None:
    with pytest.raises(KIVConfigError, match=f"{name} must be an integer >= 0, a size such as '512MiB', or None"):
        KIVConfig(**dict[str, Any]({name: text}))


@pytest.mark.parametrize("name", ["hot_tokens", "page_tokens", "retrieve_tokens"])
def test_other_numbers_take_no_size(name: str) -> None:
    with pytest.raises(KIVConfigError):
        KIVConfig(**dict[str, Any]({name: "512MiB"}))


def test_no_digit_is_lost() -> None:
    assert parse_bytes("8191.999999999999TiB") == 8191999999999999 * 2**40 // 10**12
