"""Indices of the long regime: what they hold, what it costs, and what they find."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from kiv_reference import KIVConfig
from kiv_reference import index as reference
from kiv_reference.estimate import estimates
from kiv_reference.index import SAMPLES
from kiv_reference.select import late as reference_late

from benchmarks.fidelity.long.codes import code_bytes, code_estimates, query_weights
from benchmarks.fidelity.long.figures import default_tokens, figures, late, retrieve_tokens, truth
from benchmarks.fidelity.long.outputs import output_error, with_page_tail
from benchmarks.fidelity.long.ranking import by_turns, group_scores, mask, ordered, selected
from benchmarks.fidelity.long.scene import PAGE_TOKENS, SINK_TOKENS, Scene
from benchmarks.fidelity.long.zoo import DOUBLED, EXACT, NEW, ORIGINAL, QUEST, ZOO, box_scores, mean_scores

if TYPE_CHECKING:
    from collections.abc import Callable


def scene(pages: int = 4, queries: int = 3, heads: int = 2, width: int = 16, hot: int = 100, seed: int = 0) -> Scene:
    """Return random keys and values, as peaked as a real head."""
    made = torch.Generator().manual_seed(seed)
    stop = SINK_TOKENS + pages * PAGE_TOKENS
    tokens = stop + hot

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made)

    return Scene(
        key=random(tokens, width),
        value=random(tokens, width),
        query=random(queries, heads, width),
        positions=torch.arange(tokens - queries, tokens),
        sampled=random(tokens // 64, heads, width),
        sampled_positions=torch.arange(63, tokens, 64),
        cold_stop=stop,
        hot_tokens=hot,
    )


def test_more_channels_than_there_are_code_all() -> None:
    made = scene()
    assert torch.equal(code_estimates(made, 64), code_estimates(made, 16))


def test_estimates_are_those_of_the_reference_page_by_page() -> None:
    """Real-like keys: channels that differ much in spread and mean, bfloat16, one of them constant."""
    made = scene(pages=3, width=96, hot=200, seed=7)
    spread = torch.logspace(-2, 1, 96)
    key = (made.key * spread + 5 * spread.flip(0)).bfloat16().float()
    key[:, 11] = 0.75
    made = replace(made, key=key)
    valid = torch.ones(PAGE_TOKENS, dtype=torch.bool)
    for coded in (64, 96):
        mine = code_estimates(made, coded).unflatten(2, (-1, PAGE_TOKENS))
        for page in range(3):
            tokens = made.cold_key[None, page * PAGE_TOKENS : (page + 1) * PAGE_TOKENS]
            boundary = SINK_TOKENS + (page + 1) * PAGE_TOKENS + made.hot_tokens  # where it becomes cold (SPEC 3.2)
            earlier = made.sampled[made.sampled_positions < boundary][-SAMPLES:].abs()
            weights = reference.query_weights(earlier.amax(dim=1)[None])
            index = reference.index_page(tokens, tokens, valid, weights, coded)
            expected = estimates(made.query, index, scale=1.0)
            torch.testing.assert_close(mine[:, :, page], expected, rtol=1e-5, atol=1e-4)
            fields = (index.codes, index.channels, index.centre, index.step, index.mean)
            unrounded = made.query @ reference.approximate_keys(*fields)[0].T
            assert 0 < (mine[:, :, page] - unrounded).abs().max() < 0.01 * unrounded.std()


def test_weights_are_of_the_samples_just_before_a_page_becomes_cold() -> None:
    made = scene(pages=3, hot=100)
    weights = query_weights(made)
    for page in range(3):
        cold_from = SINK_TOKENS + (page + 1) * PAGE_TOKENS + 100
        earlier = [i for i, p in enumerate(made.sampled_positions.tolist()) if p < cold_from][-SAMPLES:]
        assert len(earlier) <= SAMPLES
        torch.testing.assert_close(weights[page], made.sampled[earlier].abs().amax(dim=(0, 1)))


def test_without_samples_every_channel_counts_alike() -> None:
    made = scene(pages=1)
    none = replace(made, sampled_positions=made.sampled_positions + 10_000)
    assert (query_weights(none) == 1).all()


def test_bytes_are_counted() -> None:
    expected = {NEW: 32 + (64 * (2 + 4 + 4) + 256 * 4) / 512, QUEST: 2 * 2 * 256 / 16, ORIGINAL: 4, EXACT: 512}
    assert {index: index.index_bytes(256) for index in expected} == expected
    assert code_bytes(64, 96) == code_bytes(64, 64)


def test_heads_that_choose_for_themselves_take_turns() -> None:
    scores = torch.tensor([[[5.0, 4.0, 0.0, 0.0], [0.0, 1.0, 2.0, 3.0]]])
    order = ordered(by_turns(scores))
    assert set(order[0, :2].tolist()) == {0, 3}
    assert set(order[0].tolist()) == {0, 1, 2, 3}


def test_ties_go_to_the_lower_index() -> None:
    assert ordered(torch.tensor([[1.0, 2.0, 2.0, 0.0]])).tolist() == [[1, 2, 0, 3]]


def test_the_group_score_is_the_sum_of_exponentials() -> None:
    scores = torch.tensor([[[0.0, 1.0], [3.0, 2.0]]])
    expected = torch.tensor([[math.exp(-1) + 1, 1 + math.exp(-1)]])
    torch.testing.assert_close(group_scores(scores), expected)


def test_the_exact_index_finds_everything() -> None:
    made = scene(heads=1)
    counts = [16, 200]
    found = figures(made, EXACT, truth(made, counts), counts)
    for count in counts:
        assert (found[count].top4 == 1).all()
        torch.testing.assert_close(found[count].of_exact, torch.ones(3))
        assert not found[count].doubled.any()
    assert (found[200].top64 == 1).all()


def test_captured_mass_is_that_of_the_selected() -> None:
    made = scene()
    known = truth(made, [64])
    best = group_scores(made.cold_logits).topk(retrieve_tokens(64), dim=1).indices
    torch.testing.assert_close(known.best[64], made.cold_mass.gather(1, best).sum(dim=1))
    order = ordered(QUEST.group(QUEST.scores(made)))
    chosen = selected(made.cold_logits, order[:, :64], retrieve_tokens(64))
    share = made.cold_mass.gather(1, chosen).sum(dim=1) / known.best[64]
    torch.testing.assert_close(figures(made, QUEST, known, [64])[64].of_exact, share)


def needle_scene() -> tuple[Scene, int]:
    """Return one token that the query wants, in a page of others that it does not want.

    Queries look at one channel of 128; keys differ much more in the 127 others.
    """
    made = scene(pages=4, queries=1, heads=1, width=128, seed=6)
    needle = SINK_TOKENS + PAGE_TOKENS + 70
    made.key[:, 1:] *= 10
    made.key[:, 0] = 0.1 * made.key[:, 0]
    made.key[needle - 6 : needle + 58, 0] -= 0.5  # its page of 64
    made.key[SINK_TOKENS + 2 : made.cold_stop : 64, 0] = -14
    made.key[needle, 0] = 12
    made.query.zero_()
    made.query[..., 0] = 1
    made.sampled.mul_(0.001)
    made.sampled[..., 0] = 1
    return made, needle - SINK_TOKENS


def test_codes_find_a_needle_that_pages_hide() -> None:
    made, needle = needle_scene()
    known = truth(made, [64])
    assert int(known.top[0][0, 0]) == needle
    found = {index.name: figures(made, index, known, [64])[64] for index in (NEW, ORIGINAL, EXACT)}
    heaviest = {name: bool(f.recall_of_head[0, 0, 0]) for name, f in found.items()}
    assert heaviest == {NEW.name: True, ORIGINAL.name: False, EXACT.name: True}


def test_everything_selected_is_full_attention() -> None:
    made = scene(pages=2)
    everything = torch.arange(made.cold_tokens).expand(len(made.query), -1)
    output = with_page_tail(made, everything, everything, made.cold_logits)
    torch.testing.assert_close(output, made.full_output)


def test_a_tail_counts_what_was_left_out() -> None:
    made = scene()
    flat = replace(made, value=torch.ones_like(made.value))  # any tail is right where all values are equal
    candidates = ordered(group_scores(flat.cold_logits))[:, :100]
    chosen = selected(flat.cold_logits, candidates, 50)
    assert output_error(flat, with_page_tail(flat, candidates, chosen, flat.cold_logits)).max() < 1e-5
    assert output_error(made, with_page_tail(made, candidates, chosen, made.cold_logits)).max() > 0.1


def test_the_tail_weighs_by_exact_logits_where_they_are_known() -> None:
    made = scene()
    candidates = ordered(group_scores(made.cold_logits))[:, :100]
    chosen = selected(made.cold_logits, candidates, 50)
    known = mask(candidates, made.cold_tokens)[:, None]
    wild = torch.where(known, 1e3, made.cold_logits)  # estimates of candidates are not looked at
    exact = with_page_tail(made, candidates, chosen, made.cold_logits)
    torch.testing.assert_close(with_page_tail(made, candidates, chosen, wild), exact)


def test_indices_have_names_of_their_own_and_score_every_token() -> None:
    assert len({index.name for index in ZOO}) == len(ZOO)
    made = scene(width=128)
    for index in ZOO:
        assert index.scores(made).shape == (3, 2, made.cold_tokens)
        assert index.index_bytes(128) > 0


def test_no_key_of_a_box_scores_more_than_the_box() -> None:
    made = scene()
    boxes, means = box_scores(made, 16), mean_scores(made, 16)
    assert (boxes >= made.cold_logits - 1e-4).all()
    torch.testing.assert_close(
        means.unflatten(2, (-1, 16)).mean(dim=3), made.cold_logits.unflatten(2, (-1, 16)).mean(3)
    )
    assert boxes.unflatten(2, (-1, 16)).std(dim=3).max() == 0


@pytest.mark.parametrize("noise", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("count", [40, 200, 1500])
@pytest.mark.parametrize("retrieve", [retrieve_tokens, default_tokens])
def test_what_is_widened_is_what_the_reference_widens(noise: float, count: int, retrieve: Callable[[int], int]) -> None:
    made = scene(queries=12, seed=8)
    wrong = torch.randn(made.cold_logits.shape, generator=torch.Generator().manual_seed(9))
    order = ordered(group_scores(made.cold_logits + noise * wrong))
    config = KIVConfig(candidate_tokens=count, retrieve_tokens=retrieve(count))
    chosen = selected(made.cold_logits, order[:, :count], retrieve(count))
    expected = [reference_late(ranked, few, config) for ranked, few in zip(order, chosen, strict=True)]
    assert late(made, order, count, retrieve(count)).tolist() == expected
    if noise == 0:
        assert not any(expected)
    if noise == 4 and count == 40:
        assert any(expected)


def test_nothing_is_widened_where_every_token_is_a_candidate() -> None:
    made = scene(pages=1)
    order = ordered(-group_scores(made.cold_logits))  # as bad as can be
    assert late(made, order, 256, 128).all()
    assert not late(made, order, PAGE_TOKENS, 256).any()


def test_doubled_figures_are_those_of_twice_the_candidates_where_they_double() -> None:
    made = scene(queries=40, width=128, seed=10)
    known = truth(made, [64, 128])
    narrow = figures(made, NEW, known, [64, 128])
    found = figures(made, DOUBLED, known, [64])[64]
    assert 0 < int(found.doubled.sum()) < 40
    order = ordered(NEW.group(NEW.scores(made)))
    assert torch.equal(found.doubled, late(made, order, 64, 32))
    assert torch.equal(found.doubled_at_default, late(made, order, 64, 16))
    for i in range(40):
        beside = narrow[128 if found.doubled[i] else 64]  # the candidates of twice the count; it selects more of them
        assert found.top4[i] == beside.top4[i]
        assert found.top64[i] == beside.top64[i]
        assert torch.equal(found.recall_of_head[i], beside.recall_of_head[i])
    doubled, error, error_before = found.doubled, found.error, narrow[64].error
    assert error is not None
    assert error_before is not None
    assert found.of_exact[doubled].mean() > narrow[64].of_exact[doubled].mean()
    assert torch.equal(found.of_exact[~doubled], narrow[64].of_exact[~doubled])
    torch.testing.assert_close(error[~doubled], error_before[~doubled])
    assert error[doubled].mean() < error_before[doubled].mean()
