"""Budgets of single heads: totals are kept, mixtures are what each head gives alone, and splits are the best ones."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from benchmarks.fidelity.budgets import choices, head_means, mixture, ways
from benchmarks.fidelity.measure import Cell, Tally, statistics
from benchmarks.fidelity.rules import Rule
from benchmarks.fidelity.scene import Scene
from benchmarks.fidelity.splits import nearest, split

from .test_rules import SETTING, SMALL, scene

LAYERS = (3, 9)
BUDGETS = {n: replace(SMALL, name=f"R {n}", retrieve_tokens=n) for n in (8, 16, 32, 40, 48, 64)}


def scenes() -> dict[Cell, Scene]:
    """Two layers at two lengths; all values of a head of the second are alike, and it errs with no budget."""
    made: dict[Cell, Scene] = {}
    for rank, layer in enumerate(LAYERS):
        for length in (600, 700):
            whole = scene(tokens=length)
            if rank == 1:
                whole.value[1] = 1.0
            made[Cell("none", "none", length, layer, rank)] = whole
    return made


def tally(rule: Rule) -> Tally:
    found = Tally()
    for cell, made in scenes().items():
        found.add(cell, made, rule.answer(made, SETTING))
    return found


@pytest.fixture(scope="module")
def by_budget() -> dict[int, Tally]:
    return {n: tally(rule) for n, rule in BUDGETS.items()}


def test_equal_budgets_are_the_rule_itself(by_budget: dict[int, Tally]):
    name, equal = next(ways(by_budget, 32))
    assert name == "32 for all"
    assert statistics(mixture(by_budget, equal)) == statistics(tally(SMALL))
    assert statistics(mixture(by_budget, equal)) != statistics(by_budget[16])


def test_a_mixture_is_what_each_head_gives_alone(by_budget: dict[int, Tally]):
    budgets = {3: [8, 64], 9: [32, 16]}
    found = mixture(by_budget, budgets)
    for i, (cell, made) in enumerate(scenes().items()):
        for head, budget in enumerate(budgets[cell.layer]):
            here = slice(head, head + 1)
            alone = replace(made, key=made.key[here], value=made.value[here], query=made.query[here])
            mine = Tally()
            mine.add(cell, alone, BUDGETS[budget].answer(alone, SETTING))
            torch.testing.assert_close(found.errors[i][here], mine.errors[0], rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(found.captured[i][here], mine.captured[0])
            assert float(found.value_tokens[i][head]) == budget


def test_every_way_keeps_the_total(by_budget: dict[int, Tally]):
    found = dict(ways(by_budget, 32))
    name, more = found.popitem()
    assert name == "32 for all but 64 in the layer that errs most (3)"
    assert more == {3: [64, 64], 9: [32, 32]}
    assert len(found) == 1 + 2 * len(choices(by_budget, 32))
    assert any(len(set(itertools.chain(*budgets.values()))) > 1 for budgets in found.values())
    for name, budgets in found.items():
        assert sum(itertools.chain(*budgets.values())) == 32 * 4
        assert statistics(mixture(by_budget, budgets)).value_tokens == 32
        if "layers" in name:
            assert all(len(set(of_layer)) == 1 for of_layer in budgets.values())


def test_what_was_measured_is_best_where_it_was_measured(by_budget: dict[int, Tally]):
    same = list(ways(by_budget, 32))[:-1]
    errors = {name: statistics(mixture(by_budget, budgets)).mean for name, budgets in same}
    assert min(errors.values()) == errors["32 on average, heads as measured"] < errors["32 for all"]
    of_layers = [error for name, error in errors.items() if "heads" not in name]
    assert min(of_layers) == errors["32 on average, layers as measured"]


def test_means_of_heads_are_over_all_lengths(by_budget: dict[int, Tally]):
    found = by_budget[8]
    means = head_means(found, found.errors)
    assert means.shape == (2, 2)
    of_layer = [e for cell, e in zip(found.cells, found.errors, strict=True) if cell.layer == 9]
    assert float(means[1, 0]) == pytest.approx(float(torch.stack([e[0] for e in of_layer]).mean()))


def test_a_split_is_the_best_of_all():
    options = [1, 2, 4, 5]
    costs = torch.rand(4, len(options), generator=torch.Generator().manual_seed(1))
    every = itertools.product(range(len(options)), repeat=4)
    allowed = [way for way in every if sum(options[i] for i in way) == 11]
    best = min(allowed, key=lambda way: float(sum(costs[u, i] for u, i in enumerate(way))))
    assert split(costs, options, 11) == [options[i] for i in best]


def test_a_split_stays_near_what_is_wanted():
    assert split(nearest(torch.tensor([8.0, 32.0, 56.0]), [8, 16, 32, 64]), [8, 16, 32, 64], 96) == [16, 16, 64]
    assert split(nearest(torch.tensor([32.0, 32.0]), [16, 32, 64]), [16, 32, 64], 64) == [32, 32]


@pytest.mark.parametrize("total", [1, 9, 130])
def test_an_impossible_total_is_refused(total: int):
    with pytest.raises(ValueError, match="do not sum"):
        split(torch.zeros(2, 2), [4, 8], total)
