"""``impl="compare"`` finds what a report has wrong, and nothing where it is right."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kiv_hf import KIVConfig
from kiv_hf.compare.divergence import KIVDivergenceError
from kiv_hf.compare.pool import ComparePool
from kiv_reference import ReferencePool
from kiv_reference.report import AttendReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiv_reference.store import ReferenceStore

CONFIG = KIVConfig(hot_tokens=8, sink_tokens=2, page_tokens=4, index_channels=3, candidate_tokens=12, retrieve_tokens=5)
CODED = replace(CONFIG, index_channels=6)
LIMITED = replace(CONFIG, max_missed_mass=0.999)
WHOLE = replace(CONFIG, max_missed_mass=1e-12)
TOKENS = 62


def swapped(positions: torch.Tensor) -> torch.Tensor:
    """Replace the last of the positions by one that was left out."""
    left = [i for i in range(2, 50) if i not in positions.tolist()]
    return torch.cat([positions[:-1], torch.tensor(left[:1])]).sort().values


def short(positions: torch.Tensor) -> torch.Tensor:
    return positions[:-1]


def hot(positions: torch.Tensor) -> torch.Tensor:
    return torch.cat([positions[:-1], torch.tensor([TOKENS - 1])])


def turned(positions: torch.Tensor) -> torch.Tensor:
    return positions.flip(0)


def attended(config: KIVConfig, part: str = "", fault: Any = None) -> AttendReport:
    """Attend in two calls, the last of one query; `fault` changes a `part` of the last report."""

    def candidate(config: KIVConfig) -> ReferencePool:
        pool = ReferencePool(config)
        made = pool.layer_store

        def layer_store() -> ReferenceStore:
            store = made()
            attend = store.attend

            def wrong(query: torch.Tensor, **modifiers: Any) -> torch.Tensor:
                output = attend(query, **modifiers)
                if fault is not None and query.shape[2] == 1:
                    (block,) = store.report.blocks
                    rows = getattr(block, part).clone()
                    known = (row if row.dtype == torch.bool else row[row >= 0] for row in rows[0])
                    rows = torch.stack([fault(row) for row in known])[None]
                    store.last_report = AttendReport((replace(block, **{part: rows}),))
                return output

            store.attend = wrong
            return store

        pool.layer_store = layer_store
        return pool

    generator = torch.Generator().manual_seed(3)
    store = ComparePool(config, candidate).layer_store()
    for tokens in (TOKENS - 1, 1):
        store.append(*torch.randn(2, 1, 2, tokens, 6, generator=generator))
        store.attend(3 * torch.randn(1, 4, tokens, 6, generator=generator), scale=6**-0.5)
    return store.report


CONFIGS = {"coded": (CODED, 12, 5), "widened": (CONFIG, 24, 5), "limited": (LIMITED, 24, 5), "whole": (WHOLE, 48, 48)}


@pytest.mark.parametrize(("config", "read", "taken"), CONFIGS.values(), ids=CONFIGS)
def test_what_is_right_is_not_found_wrong(config: KIVConfig, read: int, taken: int) -> None:
    (block,) = attended(config).blocks
    assert block.mode == "retrieve"
    candidates, selected = ((rows >= 0).sum(-1) for rows in (block.candidate_positions, block.selected_positions))
    assert {*zip(candidates.flatten().tolist(), selected.flatten().tolist(), strict=True)} == {(read, taken)}
    assert block.widened.tolist() == [[read == 24] * 2]


@pytest.mark.parametrize("config", [CONFIG, LIMITED], ids=["retrieval", "limited"])
@pytest.mark.parametrize("fault", [swapped, short, hot, turned])
@pytest.mark.parametrize(("part", "clause"), [("candidate_positions", "4.4"), ("selected_positions", "4.6")])
def test_another_choice_is_found(config: KIVConfig, part: str, clause: str, fault: Callable[..., Any]) -> None:
    with pytest.raises(KIVDivergenceError, match=f"SPEC {clause}"):
        attended(config, part, fault)


@pytest.mark.parametrize(
    ("part", "clause", "count"), [("candidate_positions", "4.4", 24), ("selected_positions", "4.6", 5)]
)
def test_a_position_chosen_twice_is_found(part: str, clause: str, count: int) -> None:
    """Whichever is left out for it, the worst of the chosen ones too."""
    for out in range(count):
        kept = [i for i in range(count) if i != out]
        with pytest.raises(KIVDivergenceError, match=f"SPEC {clause}"):
            attended(CONFIG, part, lambda positions, kept=kept: positions[sorted([*kept, kept[0]])])


@pytest.mark.parametrize(("config", "clause"), [(CODED, "4.4"), (CONFIG, "4.4"), (LIMITED, "4.6"), (WHOLE, "4.4")])
def test_a_wrong_word_about_widening_is_found(config: KIVConfig, clause: str) -> None:
    with pytest.raises(KIVDivergenceError, match=f"SPEC {clause}"):
        attended(config, "widened", torch.logical_not)


@pytest.mark.parametrize(("part", "clause"), [("candidate_positions", "4.4"), ("selected_positions", "4.6")])
def test_a_choice_short_of_the_whole_is_found(part: str, clause: str) -> None:
    """The candidates that hold `max_missed_mass` are C, 2 C or 4 C, and all of them are selected."""
    with pytest.raises(KIVDivergenceError, match=f"SPEC {clause}"):
        attended(WHOLE, part, short)


def test_the_codes_are_those_of_the_dtype() -> None:
    """3/16 of the range, rounded down, has the code 3 in float32 and 2 in float64; candidates follow the first."""
    high = torch.tensor(1.9999999)
    near = (3 * high.double() / 16 * (1 - 2**-26)).float()
    assert (near / (high / 16)).floor() == 3
    assert (near.double() / (high.double() / 16)).floor() == 2
    config = KIVConfig(
        hot_tokens=1, sink_tokens=0, page_tokens=4, candidate_tokens=2, retrieve_tokens=1, prefill="retrieve"
    )
    store = ComparePool(config, ReferencePool).layer_store()
    key = torch.stack([high, high * 3.5 / 16, near, high * 0, high, high]).reshape(1, 1, 6, 1)
    store.append(key, key)
    store.attend(-key, scale=1.0)
    store.append(key[:, :, :1], key[:, :, :1])
    store.attend(-torch.ones(1, 1, 1, 1), scale=1.0)
    (block,) = store.report.blocks
    assert block.candidate_positions.tolist() == [[[1, 3]]]
