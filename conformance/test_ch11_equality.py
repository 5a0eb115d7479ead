"""SPEC chapter 11: equality. The rules by which this suite judges are tested themselves."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from hypothesis import assume, event, given
from hypothesis import strategies as st
from kiv_reference.admissible import violation

from .allowed_error import Precision, group_errors, index_errors, token_errors
from .driver import drive
from .low import LowPrecision
from .oracle import Head
from .oracle_numbers import best, group_scores
from .strategies import Scenario, configs, decode_only, scenarios, shapes

if TYPE_CHECKING:
    import random

    from .target import Target


def head_of(scenario: Scenario) -> tuple[Head, list[list[float]]]:
    """Return the first sequence and KV head at the end of a scenario, and the members of a decode step."""
    tokens, g = scenario.tokens, scenario.shape.groups
    keys, values = tokens.key[0, 0].tolist(), tokens.value[0, 0].tolist()
    head = Head(scenario.config, keys, values, [True] * len(keys), len(keys) - 1)
    return head, tokens.query[0, :g, -1].tolist()


def shuffled(a: torch.Tensor, b: torch.Tensor, order: list[int], dtype: torch.dtype) -> float:
    """Return a dot product summed one by one in another order, every step rounded to `dtype`."""
    sum_ = torch.zeros((), dtype=dtype)
    for d in order:
        sum_ = sum_ + a[d].to(dtype) * b[d].to(dtype)
    return float(sum_)


class Test_11_1_ExactPopulation:
    """With small integers and powers of two every score is exact in float32, so retrieval must be identical."""

    @given(scenario=scenarios(exact_population=True, mask_kind="none", calls=decode_only(1)))
    def test_scores_are_exact(self, scenario: Scenario) -> None:
        head, members = head_of(scenario)
        scale, low = Fraction(scenario.scale), LowPrecision(head, torch.float32)
        positions, scores = head.index_scores(members, scenario.scale)
        measured = low.index_scores(members, scenario.scale) if positions else [[]] * len(members)
        for m, query in enumerate(members):
            for n, i in enumerate(positions):
                near = self._approximate(head, i)
                total = scale * sum(Fraction(q) * k for q, k in zip(query, near, strict=True))
                assert Fraction(scores[m][n]) == Fraction(measured[m][n]) == total

    def _approximate(self, head: Head, position: int) -> list[Fraction]:
        """Return k̂ in rational numbers (SPEC 3.4); the queries weigh alike, as no position was sampled."""
        page, near, radii = head.page_at[position], [], []
        for column in zip(*(head.keys[i] for i in page.positions), strict=True):
            low, high = Fraction(min(column)), Fraction(max(column))
            centre, step, key = (low + high) / 2, (high - low) / 16, Fraction(column[page.positions.index(position)])
            code = min(15, (key - low) // step) if step else 0
            radii.append((centre - high, len(radii)))
            near.append((centre + (code - Fraction(15, 2)) * step, sum(map(Fraction, column)) / len(column)))
        coded = sorted(range(len(near)), key=lambda d: radii[d])[: head.config.index_channels]
        return [near[d][0 if d in coded else 1] for d in range(len(near))]

    @given(scenario=scenarios(exact_population=True))
    def test_retrieval_is_identical(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)


class Test_11_2_FloatingPopulation:
    """Where scores differ by at most ε a choice is right if nothing chosen is below t - 2ε and nothing rejected above
    t + 2ε.
    """

    @given(
        scores=st.lists(st.integers(-50, 50).map(lambda i: i / 16), min_size=1, max_size=30),
        n=st.integers(1, 30),
        data=st.data(),
        error=st.sampled_from([0.0, 0.01, 0.1, 1.0]),
    )
    def test_no_false_alarm(self, scores: list[float], n: int, data: st.DataObject, error: float) -> None:
        noise = data.draw(st.lists(st.floats(-error, error), min_size=len(scores), max_size=len(scores)))
        other = [s + e for s, e in zip(scores, noise, strict=True)]
        assert violation(scores, [error + 1e-12] * len(scores), best(other, n)) is None

    @given(
        scores=st.lists(st.integers(-50, 50).map(float), min_size=2, max_size=30, unique=True),
        data=st.data(),
    )
    def test_a_wrong_choice_is_found(self, scores: list[float], data: st.DataObject) -> None:
        n = data.draw(st.integers(1, len(scores) - 1))
        right = best(scores, n)
        out = data.draw(st.sampled_from(right))
        into = data.draw(st.sampled_from([i for i in range(len(scores)) if i not in right]))
        wrong = [into if i == out else i for i in right]
        assert violation(scores, [0.4] * len(scores), wrong) is not None

    @given(
        scores=st.lists(st.integers(-50, 50).map(float), min_size=2, max_size=30),
        chosen=st.sets(st.integers(0, 29), min_size=1),
        error=st.sampled_from([0.0, 0.5, 2.0]),
    )
    def test_an_admissible_choice_obeys_the_two_epsilon_rule(
        self, scores: list[float], chosen: set[int], error: float
    ) -> None:
        chosen = {i for i in chosen if i < len(scores)}
        assume(chosen)
        if violation(scores, [error] * len(scores), chosen) is None:
            t = sorted(scores, reverse=True)[len(chosen) - 1]
            assert all(scores[i] >= t - 2 * error for i in chosen)
            assert all(scores[i] <= t + 2 * error for i in range(len(scores)) if i not in chosen)

    @given(scenario=scenarios())
    def test_retrieval_is_admissible(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)


class Test_11_3_BudgetsOfError:
    """Budgets hold any order of summation in the dtype of computation, and do not hold float16."""

    @given(
        scenario=scenarios(
            shape=shapes(dtype=torch.float32, batch=1, heads=1, width=st.sampled_from([4, 16, 64])),
            mask_kind="none",
            kinds=("gaussian", "spiky", "pages", "needle"),
            calls=decode_only(1),
            config=configs(hot_tokens=0),
        ),
        order=st.randoms(use_true_random=False),
    )
    def test_token_scores(self, scenario: Scenario, order: random.Random) -> None:
        head, members = head_of(scenario)
        positions = list(head.page_at)
        assume(positions)
        precision, low = Precision(torch.float32), LowPrecision(head, torch.float32)
        errors = token_errors(low, members, positions, scenario.scale, precision)
        _, truth = head.token_scores(members, positions, scenario.scale)
        query, coarse = torch.tensor(members[0]), 0
        dims = list(range(query.numel()))
        order.shuffle(dims)
        for n, i in enumerate(positions):
            key = torch.tensor(head.keys[i])
            fine = scenario.scale * shuffled(query, key, dims, torch.float32)
            assert abs(fine - truth[0][n]) <= errors[0][n]
            half = scenario.scale * shuffled(query, key, dims, torch.float16)
            coarse += abs(half - truth[0][n]) > errors[0][n]
        event(f"float16 seen in most scores: {coarse > len(positions) / 2}")

    @given(
        scenario=scenarios(
            shape=shapes(dtype=torch.float32), mask_kind="none", calls=decode_only(1), config=configs(hot_tokens=0)
        )
    )
    def test_group_scores(self, scenario: Scenario) -> None:
        head, members = head_of(scenario)
        assume(len(head.page_at) > 1)
        precision, low = Precision(torch.float32), LowPrecision(head, torch.float32)
        _, truth = head.index_scores(members, scenario.scale)
        errors = index_errors(low, members, scenario.scale, precision)
        group = scenario.config.group
        budget = group_errors(truth, errors, group, precision)
        measured = torch.tensor(low.index_scores(members, scenario.scale))
        scores = measured.amax(dim=0)
        if group == "exp_sum":
            scores = torch.exp(measured - measured.amax(dim=1, keepdim=True)).sum(dim=0)
        for got, expected, limit in zip(scores.tolist(), group_scores(truth, group), budget, strict=True):
            assert abs(got - expected) <= limit
