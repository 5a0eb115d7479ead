"""The second oracle's arithmetic: Python floats (float64) and sums that are exactly rounded (`math.fsum`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from operator import mul

Vector = Sequence[float]


def total(numbers: Iterable[float]) -> float:
    """Return the sum, exactly rounded; with infinities or NaN, what floating point gives."""
    numbers = list(numbers)
    if all(map(math.isfinite, numbers)):
        return math.fsum(numbers)
    return sum(numbers)


def dot(a: Iterable[float], b: Iterable[float]) -> float:
    """Return the inner product."""
    return math.fsum(map(mul, a, b))


def log_sum_exp(logits: Iterable[float]) -> float:
    """Return log Σ exp; minus infinity for no logits."""
    logits = [x for x in logits if x != -math.inf]
    if not logits:
        return -math.inf
    top = max(logits)
    return top + math.log(math.fsum(math.exp(x - top) for x in logits))


def share(part: float, whole: Iterable[float]) -> float:
    """Return exp(part) / Σ exp(whole); 0 where there is nothing."""
    denominator = log_sum_exp(whole)
    return 0.0 if part == -math.inf or denominator == -math.inf else math.exp(part - denominator)


def best(scores: Sequence[float], n: int) -> list[int]:
    """Return indices of the n best: higher score, then lower index (SPEC 1.3)."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:n]


def group_scores(by_member: Sequence[Sequence[float]], group: str) -> list[float]:
    """Group score of each item from the scores of each member (SPEC 4.3)."""
    items = range(len(by_member[0]))
    if group == "max":
        return [max(scores[i] for scores in by_member) for i in items]
    tops = [max(scores) for scores in by_member]
    return [math.fsum(math.exp(scores[i] - top) for scores, top in zip(by_member, tops, strict=True)) for i in items]
