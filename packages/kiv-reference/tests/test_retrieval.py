"""Cases small enough to compute on paper."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import pytest
import torch
from kiv_reference import KIVConfig, ReferencePool
from kiv_reference.call import _round_up
from kiv_reference.errors import KIVNonFiniteError
from kiv_reference.estimate import code_weights, estimates
from kiv_reference.index import PageIndex, approximate_keys, index_page, query_weights
from kiv_reference.select import best, group_scores

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiv_reference.store import ReferenceStore


def test_best_prefers_the_lower_index_among_equals() -> None:
    assert best(torch.tensor([1.0, 3.0, 3.0, -0.0, 0.0]), 4).tolist() == [1, 2, 0, 3]


def test_group_scores_by_hand() -> None:
    scores = torch.tensor([[0.0, math.log(2.0)], [5.0, 5.0 - math.log(4.0)]])
    assert group_scores(scores, "max").tolist() == pytest.approx([5.0, 5.0 - math.log(4.0)])
    # head 0: exp(-log 2), 1; head 1: 1, 1/4
    assert group_scores(scores, "exp_sum").tolist() == pytest.approx([1.5, 1.25])


def test_codes_by_hand() -> None:
    # Three channels of which two are coded: where queries look less, keys must vary more.
    key = torch.tensor([[[0.0, 5.0, 8.0], [16.0, 5.5, 0.0], [9.0, 7.0, 4.0], [torch.nan, torch.inf, 0.0]]])
    valid = torch.tensor([True, True, True, False])
    index = index_page(key, key.clone(), valid, torch.tensor([[1.0, 5.0, 1.0]]), coded=2)
    assert index.channels.tolist() == [[0, 1]]  # of 1 · 8, 5 · 1 and 1 · 4
    assert (index.centre.tolist(), index.step.tolist()) == ([[8.0, 6.0]], [[1.0, 0.125]])
    assert index.codes.tolist() == [[[0, 0], [15, 4], [9, 15], [0, 0]]]
    near = approximate_keys(index.codes, *index[1:5])[0]
    mean = [25 / 3, 17.5 / 3, 4.0]
    assert near[:3, :2].tolist() == [[0.5, 5.0625], [15.5, 5.5625], [9.5, 6.9375]]
    assert near[:3, 2].tolist() == [4.0, 4.0, 4.0]
    assert index.mean[0].tolist() == pytest.approx(mean)
    assert index.error[0].tolist() == pytest.approx([0.5, 0.0625, 4.0])
    assert index.value[0].tolist() == pytest.approx(mean)


def test_estimates_by_hand() -> None:
    # Two pages of one token in three channels, two of them coded, and one query of 2, 6 and -0.5, scale 0.5.
    index = PageIndex(
        codes=torch.tensor([[[3, 1]], [[0, 15]]], dtype=torch.uint8),
        channels=torch.tensor([[1, 0], [0, 2]]),
        centre=torch.tensor([[7.5, 1.0], [0.0, 0.0]]),
        step=torch.tensor([[1.0, 2.0**-13 * 5], [0.0, 0.0]]),
        mean=torch.tensor([[9.0, 9.0, 4.0], [9.0, 1.0, 9.0]]),
        error=torch.zeros(2, 3),
        value=torch.zeros(2, 1),
    )
    query = torch.tensor([2.0, 6.0, -0.5])
    weights, unit = code_weights(query, index, scale=0.5)
    # Of 3 the unit is 2 / 4096, of which 5 / 8192 is 1.25; and nothing is coded by a step of 0.
    assert (weights.tolist(), unit[0].item()) == ([[6144.0, 1.0], [0.0, 0.0]], 2.0**-11)
    first = (1 - 7.5 * 5 / 8192) + 0 - 1 + 3 * 3 + 2.0**-11
    assert estimates(query, index, scale=0.5).tolist() == [first, 3.0]


def test_a_page_of_equal_keys_is_coded_without_error() -> None:
    key = torch.full((1, 2, 1), 3.25)
    index = index_page(key, key, torch.tensor([True, True]), torch.ones(1, 1), coded=1)
    assert (index.step.item(), index.codes.sum().item(), index.error.item()) == (0.0, 0, 0.0)


def test_query_weights_by_hand() -> None:
    sampled = torch.tensor([[[1.0, 2.0], [torch.nan, torch.nan], [3.0, 0.5]]])
    assert query_weights(sampled).tolist() == [[3.0, 2.0]]
    assert query_weights(sampled[:, 1:2]).tolist() == [[1.0, 1.0]]
    assert query_weights(sampled[:, :0]).tolist() == [[1.0, 1.0]]


KEYS = [[0.0], [0.0], [1.0], [2.0], [4.0], [1.0], [0.0], [0.0]]
VALUES = [[0.0], [0.0], [1.0], [2.0], [3.0], [4.0], [0.0], [0.0]]


NEAR = {1.0: 1.03125, 2.0: 1.96875}
"""Keys 1 and 2 of one page -> their approximate keys: 1.5 ± 7.5 / 16."""


def test_decode_attends_to_sinks_selection_and_hot(tiny: KIVConfig, store_of: Callable[..., ReferenceStore]) -> None:
    # Eight tokens, the last is the query: boundary 7, so one cold page {2, 3}; best token: 3.
    store = store_of(tiny, KEYS, VALUES)
    output = store.attend(torch.tensor([[[[1.0]]]]), scale=1.0, bound=True)
    block = store.report.blocks[0]
    assert block.candidate_positions.tolist() == [[[3]]]
    assert block.selected_positions.tolist() == [[[3]]]
    e = math.exp
    total = 2 + e(2) + e(4) + e(1) + 2  # sinks, token 3, hot 4 to 7
    assert output.item() == pytest.approx((2 * e(2) + 3 * e(4) + 4 * e(1)) / total)
    assert block.exact_mass.item() == 1.0
    upper = e(NEAR[1.0] + 0.03125)  # token 2 was not read; the weight, a power of two, is not rounded
    assert block.missed_bound is not None
    assert block.missed_bound.item() == pytest.approx(upper / (total + upper), rel=1e-4)
    assert (block.key_bytes, block.value_bytes) == (1 * 4, 1 * 4)


def test_where_nothing_is_to_choose_a_block_is_exact(tiny: KIVConfig, store_of: Callable[..., ReferenceStore]) -> None:
    store = store_of(dataclasses.replace(tiny, candidate_tokens=2), KEYS, VALUES)
    output = store.attend(torch.tensor([[[[1.0]]]]), scale=1.0)
    exact = store_of(dataclasses.replace(tiny, retrieve_tokens=None), KEYS, VALUES)
    assert torch.equal(output, exact.attend(torch.tensor([[[[1.0]]]]), scale=1.0))
    assert (store.report.blocks[0].mode, store.report.value_bytes) == ("exact", 2 * 4)


@pytest.mark.parametrize("softcap", [None, 8.0])
def test_tail_of_a_page_by_hand(
    tiny: KIVConfig, store_of: Callable[..., ReferenceStore], softcap: float | None
) -> None:
    store = store_of(dataclasses.replace(tiny, tail="mean"), KEYS, VALUES)
    output = store.attend(torch.tensor([[[[1.0]]]]), scale=1.0, softcap=softcap)

    def mass(x: float) -> float:
        return math.exp(x if softcap is None else softcap * math.tanh(x / softcap))

    # Token 2 was not read: the mass of its approximate key, value the page's mean 1.5 and half of what token 3 differs.
    left = mass(NEAR[1.0])
    total = 2 + mass(2) + mass(4) + mass(1) + 2 + left
    assert output.item() == pytest.approx((2 * mass(2) + 3 * mass(4) + 4 * mass(1) + 1.75 * left) / total)
    assert store.report.blocks[0].estimated_mass.item() == pytest.approx(left / total)


def test_a_candidate_weighs_in_the_tail_by_its_key(tiny: KIVConfig, store_of: Callable[..., ReferenceStore]) -> None:
    # Ten tokens: cold are 2 to 5, of keys 1, 2, 4, 1. Candidates are 2, 3 and 4; 4 is selected.
    config = dataclasses.replace(tiny, tail="mean", candidate_tokens=3)
    store = store_of(config, [*KEYS, [0.0], [0.0]], [*VALUES, [0.0], [0.0]])
    output = store.attend(torch.tensor([[[[1.0]]]]), scale=1.0)
    block = store.report.blocks[0]
    # Of 5 the approximate key is 2.5 - 7.5 * 1.5 / 8 = 1.09375, more than 2's.
    assert block.candidate_positions.tolist() == [[[3, 4, 5]]]
    assert block.selected_positions.tolist() == [[[4]]]
    e = math.exp
    shift = 0.5 * (3 - 3.5)
    first, second = e(2) + e(NEAR[1.0]), e(1)
    total = 2 + e(4) + 4 + first + second
    assert output.item() == pytest.approx((3 * e(4) + (1.5 + shift) * first + (3.5 + shift) * second) / total)


def test_shift_of_mean_values_by_hand(tiny: KIVConfig, store_of: Callable[..., ReferenceStore]) -> None:
    # Ten tokens, cold pages {2, 3} and {4, 5}: tokens 3, 4 and 5 are read and selected, 2 is left.
    config = dataclasses.replace(tiny, tail="mean", candidate_tokens=3, retrieve_tokens=3)
    store = store_of(config, [*KEYS, [0.0], [0.0]], [*VALUES, [0.0], [0.0]])
    output = store.attend(torch.tensor([[[[1.0]]]]), scale=1.0)
    assert store.report.blocks[0].selected_positions.tolist() == [[[3, 4, 5]]]
    e = math.exp
    # The scores' mean is 7/3: the highest counts little. Their values differ from their pages' by 0.5, -0.5, 0.5.
    weights = [e(x) / (1 + e(4 * (x - 7 / 3))) for x in (2.0, 4.0, 1.0)]
    shift = 0.5 * (0.5 * weights[0] - 0.5 * weights[1] + 0.5 * weights[2]) / sum(weights)
    left = e(NEAR[1.0])
    total = 2 + e(2) + e(4) + e(1) + 4 + left
    assert output.item() == pytest.approx((2 * e(2) + 3 * e(4) + 4 * e(1) + (1.5 + shift) * left) / total)


def test_learned_sinks_join_the_denominator(tiny: KIVConfig, store_of: Callable[..., ReferenceStore]) -> None:
    store = store_of(tiny, KEYS[:1], [[2.0]])
    output = store.attend(torch.tensor([[[[0.0]]]]), scale=1.0, sink_logits=torch.tensor([math.log(3.0)]))
    assert output.item() == pytest.approx(0.5)


def test_huge_logits_still_average(tiny: KIVConfig, store_of: Callable[..., ReferenceStore]) -> None:
    # Four equal logits of 1e17, where adding the log of their number is lost in float32.
    store = store_of(tiny, [[1e9]] * 4, [[1.0], [2.0], [3.0], [6.0]])
    output = store.attend(torch.tensor([[[[1e8]]]]), scale=1.0)
    assert output.item() == pytest.approx(3.0)
    assert store.report.blocks[0].exact_mass.item() == pytest.approx(1.0)


def test_padding_is_never_seen(tiny: KIVConfig, store_of: Callable[..., ReferenceStore]) -> None:
    keys, values = torch.tensor([*KEYS, [0.0], [0.0]]), torch.tensor([*VALUES, [0.0], [0.0]])
    keys[4], values[4] = torch.nan, torch.nan
    store = store_of(tiny, keys, values, valid=[t != 4 for t in range(10)])
    store.attend(torch.tensor([[[[1.0]]]]), scale=1.0)
    assert store.report.blocks[0].selected_positions.tolist() == [[[3]]]
    assert store.report.key_bytes == 4


def test_a_query_that_is_padding_sees_what_is_valid_and_is_not_reported(
    tiny: KIVConfig, store_of: Callable[..., ReferenceStore]
) -> None:
    store = store_of(tiny, KEYS[2:4], VALUES[2:4], valid=[True, False])
    output = store.attend(torch.full((1, 1, 1, 1), torch.nan), scale=1.0)
    assert output.item() == VALUES[2][0] != 0.0
    assert store.report.blocks[0].exact_mass.item() == 0.0


def test_keys_that_are_not_finite_are_refused_and_change_nothing(
    tiny: KIVConfig, store_of: Callable[..., ReferenceStore]
) -> None:
    store = store_of(tiny, KEYS[:3], VALUES[:3])
    with pytest.raises(KIVNonFiniteError, match="sequence 0, token 0"):
        store.append(torch.full((1, 1, 1, 1), torch.inf), torch.zeros(1, 1, 1, 1))
    assert store.length == 3


def test_a_value_that_is_not_finite_shows_only_where_it_is_attended(
    tiny: KIVConfig, store_of: Callable[..., ReferenceStore]
) -> None:
    values = torch.tensor([*VALUES, [0.0], [0.0]])
    values[2] = torch.nan
    keys, query = [*KEYS, [0.0], [0.0]], torch.tensor([[[[1.0]]]])
    assert math.isfinite(store_of(tiny, keys, values).attend(query, scale=1.0).item())
    values[4] = torch.nan
    assert math.isnan(store_of(tiny, keys, values).attend(query, scale=1.0).item())


def test_missed_mass_takes_tokens_and_then_streams(tiny: KIVConfig, store_of: Callable[..., ReferenceStore]) -> None:
    keys = [[0.0], [0.0], *[[3.0], [3.0]] * 6, [0.0], [0.0], [0.0]]
    values = [[float(t)] for t in range(len(keys))]
    query = torch.tensor([[[[1.0]]]])
    # Twelve cold tokens alike: with one selected 11 of 12 are missed, with four 8.
    taken = store_of(dataclasses.replace(tiny, max_missed_mass=0.7), keys, values)
    taken.attend(query, scale=1.0, bound=True)
    block = taken.report.blocks[0]
    assert not block.streamed.any()
    assert block.selected_positions.tolist() == block.candidate_positions.tolist() == [[[2, 3, 4, 5]]]
    assert block.missed_bound is not None
    assert 0.6 < block.missed_bound.item() <= 0.7
    streamed = store_of(dataclasses.replace(tiny, max_missed_mass=0.01), keys, values)
    output = streamed.attend(query, scale=1.0)
    assert streamed.report.streamed == 1
    exact = store_of(dataclasses.replace(tiny, retrieve_tokens=None), keys, values)
    assert torch.equal(output, exact.attend(query, scale=1.0))


def test_sampled_queries_decide_what_is_coded() -> None:
    # Two channels, one coded. Keys vary more in the first; the queries of positions 63 and 127 look at the second.
    config = KIVConfig(
        hot_tokens=0, sink_tokens=0, page_tokens=32, index_channels=1, candidate_tokens=4, retrieve_tokens=4
    )
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(1, 1, 160, 2, generator=generator) * torch.tensor([2.0, 1.0])
    query = torch.ones(1, 2, 160, 2)
    query[:, :, 127] = torch.tensor([1.0, -9.0])
    store = ReferencePool(config).layer_store()
    for t in range(160):
        store.append(key[:, :, t : t + 1], key[:, :, t : t + 1])
        store.attend(query[:, :, t : t + 1], scale=1.0)
        store.attend(torch.full((1, 2, 1, 2), 100.0), scale=1.0)  # only the first attend after an append counts
    assert store.contents is not None
    channels = store.contents.index[1].tensor
    # The pages' boundaries are 32, 64, 96, 128: the first has no sample, the fourth the query of 127.
    assert channels.flatten().tolist() == [0, 0, 0, 1]
    assert store.contents.sampled.tensor.tolist() == [[[[1.0, 1.0], [1.0, 9.0]]]]


def test_the_reported_bound_is_rounded_up_only() -> None:
    bound = torch.tensor([0.7438106105, 0.25, 0.0], dtype=torch.float64)
    rounded = _round_up(bound)
    assert rounded.dtype == torch.float32
    assert bool((rounded.double() >= bound).all())
    assert rounded[1:].tolist() == [0.25, 0.0]
