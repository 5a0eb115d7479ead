"""Cases small enough to compute on paper."""

import dataclasses
import math

import pytest
import torch
from kiv_reference.call import _round_up
from kiv_reference.errors import KIVNonFiniteError
from kiv_reference.select import best, group_scores, page_scores
from kiv_reference.summary import summarise, summarise_spans


def test_best_prefers_the_lower_index_among_equals():
    assert best(torch.tensor([1.0, 3.0, 3.0, -0.0, 0.0]), 4).tolist() == [1, 2, 0, 3]


def test_group_scores_by_hand():
    scores = torch.tensor([[0.0, math.log(2.0)], [5.0, 5.0 - math.log(4.0)]])
    assert group_scores(scores, "max").tolist() == pytest.approx([5.0, 5.0 - math.log(4.0)])
    # head 0: exp(-log 2), 1; head 1: 1, 1/4
    assert group_scores(scores, "exp_sum").tolist() == pytest.approx([1.5, 1.25])


def test_page_score_by_hand():
    query, mean, spread = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 1.0]]), torch.tensor([[0.5, 2.0]])
    # 0.5 * (3 - 2 + 0.5 * (0.5 + 4))
    assert page_scores(query, mean, spread, 0.5, 0.5).item() == pytest.approx(1.625)


def test_summary_leaves_padding_out():
    key = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [torch.nan, torch.inf]]])
    page = summarise(key, key.clone(), torch.tensor([True, True, False]))
    assert page.mean.tolist() == [[2.0, 4.0]]
    assert page.spread.tolist() == [[1.0, 2.0]]
    assert page.value.tolist() == [[2.0, 4.0]]


def test_spans_merge_pages_by_their_counts():
    count, mean = torch.tensor([2, 1, 1]), torch.tensor([[3.0], [0.0], [5.0]])
    spans = summarise_spans(count, mean, mean * 10, torch.tensor([0, 1, 2]), span_pages=2)
    assert spans.count.tolist() == [3, 1]
    assert spans.mean.flatten().tolist() == [2.0, 5.0]
    assert spans.value.flatten().tolist() == [20.0, 50.0]


def test_spans_of_float64_are_merged_in_float64():
    mean = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    spans = summarise_spans(torch.tensor([1, 1, 1]), mean, mean, torch.tensor([0, 1, 2]), span_pages=3)
    assert spans.mean.item() == pytest.approx(1 / 3, rel=1e-15)


KEYS = [[0.0], [0.0], [1.0], [2.0], [4.0], [1.0], [0.0], [0.0]]
VALUES = [[0.0], [0.0], [1.0], [2.0], [3.0], [4.0], [0.0], [0.0]]


def test_decode_attends_to_sinks_selection_and_hot(tiny, store_of):
    # Eight tokens, the last is the query: boundary 7, so one cold page {2, 3}; best token: 3.
    store = store_of(tiny, KEYS, VALUES)
    output = store.attend(torch.tensor([[[[1.0]]]]), scale=1.0, bound=True)
    block = store.report.blocks[0]
    assert block.candidate_pages.tolist() == [[[0]]]
    assert block.selected_positions.tolist() == [[[3]]]
    e = math.exp
    total = 2 + e(2) + e(4) + e(1) + 2  # sinks, token 3, hot 4 to 7
    assert output.item() == pytest.approx((2 * e(2) + 3 * e(4) + 4 * e(1)) / total)
    assert block.exact_mass.item() == 1.0
    assert block.missed_bound.item() == pytest.approx(e(1) / (total + e(1)))
    assert (block.key_bytes, block.value_bytes) == (2 * 4, 1 * 4)


def test_tail_of_a_candidate_page_by_hand(tiny, store_of):
    store = store_of(dataclasses.replace(tiny, tail="mean"), KEYS, VALUES)
    output = store.attend(torch.tensor([[[[1.0]]]]), scale=1.0)
    e = math.exp
    # Token 2 was not selected: mass e(1), value the page's mean 1.5 and half of what token 3 differs from it.
    total = 2 + e(2) + e(4) + e(1) + 2 + e(1)
    assert output.item() == pytest.approx((2 * e(2) + 3 * e(4) + 4 * e(1) + 1.75 * e(1)) / total)
    assert store.report.blocks[0].estimated_mass.item() == pytest.approx(e(1) / total)


def test_shift_of_mean_values_by_hand(tiny, store_of):
    # Ten tokens, cold pages {2, 3} and {4, 5}: of scores 1, 2, 4 and 1 the last is not selected.
    config = dataclasses.replace(tiny, tail="mean", candidate_pages=2, retrieve_tokens=3)
    store = store_of(config, [*KEYS, [0.0], [0.0]], [*VALUES, [0.0], [0.0]])
    output = store.attend(torch.tensor([[[[1.0]]]]), scale=1.0)
    assert store.report.blocks[0].selected_positions.tolist() == [[[2, 3, 4]]]
    e = math.exp
    # The scores' mean is 7/3: the highest counts little. Their values differ from their pages' by -0.5, 0.5, -0.5.
    weights = [e(x) / (1 + e(4 * (x - 7 / 3))) for x in (1.0, 2.0, 4.0)]
    shift = 0.5 * (-0.5 * weights[0] + 0.5 * weights[1] - 0.5 * weights[2]) / sum(weights)
    assert shift == pytest.approx(0.089, abs=1e-3)
    total = 2 + e(1) + e(2) + e(4) + 4 + e(1)
    assert output.item() == pytest.approx((1 * e(1) + 2 * e(2) + 3 * e(4) + (3.5 + shift) * e(1)) / total)


def test_tail_of_a_span_by_hand(tiny, store_of):
    # Ten tokens: boundary 9, cold pages {2, 3} and {4, 5}. The query likes page 1 best and takes it whole.
    config = dataclasses.replace(tiny, tail="mean", retrieve_tokens=2)
    store = store_of(config, [*KEYS, [0.0], [0.0]], [*VALUES, [0.0], [0.0]])
    output = store.attend(torch.tensor([[[[1.0]]]]), scale=1.0, softcap=8.0)

    def mass(x: float) -> float:
        return math.exp(8 * math.tanh(x / 8))

    assert store.report.blocks[0].selected_positions.tolist() == [[[4, 5]]]
    span = 2 * mass(1.5)  # two tokens at their mean key
    total = 2 + mass(4) + mass(1) + 4 + span
    assert output.item() == pytest.approx((3 * mass(4) + 4 * mass(1) + 1.5 * span) / total)


def test_learned_sinks_join_the_denominator(tiny, store_of):
    store = store_of(tiny, KEYS[:1], [[2.0]])
    output = store.attend(torch.tensor([[[[0.0]]]]), scale=1.0, sink_logits=torch.tensor([math.log(3.0)]))
    assert output.item() == pytest.approx(0.5)


def test_huge_logits_still_average(tiny, store_of):
    # Four equal logits of 1e17, where adding the log of their number is lost in float32.
    store = store_of(tiny, [[1e9]] * 4, [[1.0], [2.0], [3.0], [6.0]])
    output = store.attend(torch.tensor([[[[1e8]]]]), scale=1.0)
    assert output.item() == pytest.approx(3.0)
    assert store.report.blocks[0].exact_mass.item() == pytest.approx(1.0)


def test_padding_is_never_seen(tiny, store_of):
    keys, values = torch.tensor(KEYS), torch.tensor(VALUES)
    keys[3], values[3] = torch.nan, torch.nan
    store = store_of(tiny, keys, values, valid=[t != 3 for t in range(8)])
    store.attend(torch.tensor([[[[1.0]]]]), scale=1.0)
    assert store.report.blocks[0].selected_positions.tolist() == [[[2]]]
    assert store.report.key_bytes == 4


def test_a_query_that_is_padding_sees_what_is_valid_and_is_not_reported(tiny, store_of):
    store = store_of(tiny, KEYS[2:4], VALUES[2:4], valid=[True, False])
    output = store.attend(torch.full((1, 1, 1, 1), torch.nan), scale=1.0)
    assert output.item() == VALUES[2][0] != 0.0
    assert store.report.blocks[0].exact_mass.item() == 0.0


def test_keys_that_are_not_finite_are_refused_and_change_nothing(tiny, store_of):
    store = store_of(tiny, KEYS[:3], VALUES[:3])
    with pytest.raises(KIVNonFiniteError, match="sequence 0, token 0"):
        store.append(torch.full((1, 1, 1, 1), torch.inf), torch.zeros(1, 1, 1, 1))
    assert store.length == 3


def test_a_value_that_is_not_finite_shows_only_where_it_is_attended(tiny, store_of):
    values = torch.tensor(VALUES)
    values[2] = torch.nan
    query = torch.tensor([[[[1.0]]]])
    assert math.isfinite(store_of(tiny, KEYS, values).attend(query, scale=1.0).item())
    seen = dataclasses.replace(tiny, retrieve_tokens=2)
    assert math.isnan(store_of(seen, KEYS, values).attend(query, scale=1.0).item())


def test_missed_mass_takes_pages_and_then_streams(tiny, store_of):
    keys = [[0.0], [0.0], *[[3.0], [3.0]] * 6, [0.0], [0.0], [0.0]]
    values = [[float(t)] for t in range(len(keys))]
    query = torch.tensor([[[[1.0]]]])
    taken = store_of(dataclasses.replace(tiny, max_missed_mass=0.75), keys, values)
    taken.attend(query, scale=1.0, bound=True)
    block = taken.report.blocks[0]
    assert not block.streamed.any()
    assert block.missed_bound.item() <= 0.75
    assert block.selected_positions.numel() > 1
    streamed = store_of(dataclasses.replace(tiny, max_missed_mass=0.01), keys, values)
    output = streamed.attend(query, scale=1.0)
    assert streamed.report.streamed == 1
    exact = store_of(dataclasses.replace(tiny, retrieve_tokens=None), keys, values)
    assert torch.equal(output, exact.attend(query, scale=1.0))


def test_the_reported_bound_is_rounded_up_only():
    bound = torch.tensor([0.7438106105, 0.25, 0.0], dtype=torch.float64)
    rounded = _round_up(bound)
    assert rounded.dtype == torch.float32
    assert bool((rounded.double() >= bound).all())
    assert rounded[1:].tolist() == [0.25, 0.0]
