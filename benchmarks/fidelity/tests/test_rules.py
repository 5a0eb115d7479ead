"""The rules on random scenes: against the reference, against the original's store, and in limits that are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.fidelity.attention import captured_mass, output_error
from benchmarks.fidelity.grouping import best_mask, group_scores
from benchmarks.fidelity.reference_check import compare
from benchmarks.fidelity.rows import KIV, ORACLE, ORACLE_HEAD, ORIGINAL_NO_SINKS, PARETO, PUBLISHED, QUEST, WINDOW
from benchmarks.fidelity.rules import Rule
from benchmarks.fidelity.scene import Scene, Setting, make_scene
from benchmarks.fidelity.scores import BOX, TRUE_MAXIMUM, mean_plus_spread
from benchmarks.fidelity.tails import Tail

SETTING = Setting(hot_tokens=100, sink_tokens=4, retrieve_tokens=32, candidate_tokens=128)
SMALL = replace(KIV, retrieve_tokens=None)  # takes the setting's


def scene(heads: int = 2, groups: int = 3, tokens: int = 700, width: int = 16, setting: Setting = SETTING) -> Scene:
    generator = torch.Generator().manual_seed(7)
    key, value = torch.randn(2, heads, tokens, width, generator=generator)
    query = 2 * torch.randn(heads * groups, 4, width, generator=generator)
    return make_scene(key, value, query, torch.arange(tokens - 4, tokens), width**-0.5, setting)


def test_kiv_is_the_reference():
    difference = compare(scene(), SETTING, 2, SETTING.retrieve_tokens)
    assert difference.output < 1e-5
    assert difference.tokens == 0
    assert difference.queries == 4


def test_the_check_would_notice_another_rule(monkeypatch: pytest.MonkeyPatch):
    other = replace(KIV, score=mean_plus_spread(0.0))
    monkeypatch.setattr("benchmarks.fidelity.reference_check.kiv_rule", lambda name, config: other)
    assert compare(scene(), SETTING, 2, SETTING.retrieve_tokens).output > 1e-3


def test_full_attention_is_the_reference_softmax():
    made = scene()
    logits = made.scale * made.query[1, 0, 2] @ made.key[1, : int(made.positions[0]) + 1].T
    expected = logits.softmax(dim=0) @ made.value[1, : int(made.positions[0]) + 1]
    torch.testing.assert_close(made.full_output[1, 0, 2], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", [KIV, ORACLE, ORACLE_HEAD, QUEST], ids=lambda rule: rule.name)
def test_everything_retrieved_is_exact(rule: Rule):
    made = scene()
    whole = replace(rule, retrieve_tokens=made.cold_tokens, candidate_factor=100.0)
    answer = whole.answer(made, SETTING)
    assert output_error(made, answer.output).max() < 1e-4
    torch.testing.assert_close(captured_mass(made, answer.selected), torch.ones(2, 4, 3), rtol=1e-5, atol=1e-5)


def test_the_window_alone_selects_nothing():
    answer = WINDOW.answer(scene(), SETTING)
    assert not answer.selected.any()
    assert answer.key_tokens.sum() == answer.value_tokens.sum() == 0


def test_budgets_are_kept():
    answer = SMALL.answer(scene(), SETTING)
    assert (answer.value_tokens == SETTING.retrieve_tokens).all()
    assert (answer.key_tokens == SETTING.candidate_tokens).all()
    own = ORACLE_HEAD.answer(scene(), SETTING)
    assert (own.selected.sum(dim=3) == SETTING.retrieve_tokens).all()
    assert (own.value_tokens > SETTING.retrieve_tokens).all()


def test_the_shared_oracle_captures_most():
    made = scene()
    best = replace(ORACLE, token_group="softmax_sum")
    most = captured_mass(made, best.answer(made, SETTING).selected).mean()
    for rule in (KIV, replace(ORACLE, token_group="max"), ORACLE):
        assert captured_mass(made, rule.answer(made, SETTING).selected).mean() <= most + 1e-6


def test_a_bound_is_a_bound():
    made = scene()
    truth = TRUE_MAXIMUM.score(made, 32)
    assert (BOX.score(made, 32) >= truth - 1e-4).all()
    assert (mean_plus_spread(1.0).score(made, 32) >= truth - 1e-4).all()
    assert (mean_plus_spread(0.0).score(made, 32) <= truth + 1e-4).all()


def test_ties_go_to_the_lower_index():
    mask = best_mask(torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0]]), 3)
    assert mask.tolist() == [[True, True, False, True, False]]


def test_group_rules_differ():
    scores = torch.tensor([[5.0, 4.9, 0.0], [0.0, 4.9, 5.0]])[None, None]  # [1, 1, 2, 3]
    assert group_scores(scores, "max").argmax() in (0, 2)
    assert group_scores(scores, "exp_sum").argmax() == 1
    assert group_scores(scores, "softmax_sum").argmax() == 1
    assert group_scores(scores, "head").shape == (1, 1, 2, 3)


def test_the_tail_counts_what_was_left_out():
    made = scene()
    flat = replace(made, value=torch.ones_like(made.value))  # any tail is right where all values are equal
    error = output_error(flat, KIV.answer(flat, SETTING).output)
    assert error.max() < 1e-5


def test_a_least_share_selects_fewer():
    made = scene()
    some = replace(SMALL, least_share=0.01).answer(made, SETTING)
    assert some.value_tokens.max() <= SETTING.retrieve_tokens
    assert some.value_tokens.sum() < SMALL.answer(made, SETTING).value_tokens.sum()


def test_the_original_is_its_store():
    from kiv_reference.config import KIVConfig

    from benchmarks.original import HOT_TOKENS, PAGE_TOKENS, TOP_PAGES, TOP_TOKENS, OriginalPool

    setting = Setting(HOT_TOKENS, 0, TOP_TOKENS, TOP_PAGES * PAGE_TOKENS)
    tokens = HOT_TOKENS + 40 * PAGE_TOKENS + 5
    made = scene(tokens=tokens, setting=setting)
    store = OriginalPool(KIVConfig()).layer_store()
    first = int(made.positions[0])
    store.append(made.key[None, :, :first], made.value[None, :, :first])
    for i, position in enumerate(made.positions.tolist()):
        here = slice(position, position + 1)
        store.append(made.key[None, :, here], made.value[None, :, here])
        query = made.query[:, i].reshape(1, -1, 1, made.query.shape[3])
        expected = store.attend(query, scale=made.scale)[0, :, 0].unflatten(0, (2, -1))
        mine = ORIGINAL_NO_SINKS.answer(made, setting).output[:, i]
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_names_are_unique():
    for rules in (PARETO, [rule for rule, _ in PUBLISHED]):
        assert len({rule.name for rule in rules}) == len(rules)


def test_a_shift_needs_a_selection():
    made = scene()
    still = replace(SMALL, tail=Tail(shift=0.0))
    assert not torch.equal(still.answer(made, SETTING).output, SMALL.answer(made, SETTING).output)
    nothing = replace(KIV, retrieve_tokens=0).answer(made, SETTING)
    assert torch.isfinite(nothing.output).all()
