"""A total split among many under a cost for each: exactly, by dynamic programming over the total."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def split(costs: torch.Tensor, options: Sequence[int], total: int) -> list[int]:
    """Give each of U an option so that the options sum to `total` and their costs to the least.

    Parameters
    ----------
    costs : [U, N]
        Of each of N options for each of U.
    options : N positive integers
    total : int
        A multiple of what divides all options.

    Raises
    ------
    ValueError
        No options sum to `total`.
    """
    unit = math.gcd(*options)
    steps, most = [option // unit for option in options], total // unit
    best = torch.full((most + 1,), math.inf, dtype=torch.float64)
    best[0] = 0.0
    picks: list[torch.Tensor] = []
    for row in costs.double():
        ways = torch.full((len(steps), most + 1), math.inf, dtype=torch.float64)  # [N, total so far]
        for way, step, price in zip(ways, steps, row, strict=True):
            if step <= most:
                way[step:] = best[: most + 1 - step] + price
        best, pick = ways.min(dim=0)
        picks.append(pick)
    if total % unit or math.isinf(float(best[most])):
        raise ValueError(f"{len(costs)} of {list(options)} do not sum to {total}")
    found: list[int] = []
    for pick in reversed(picks):
        found.append(int(pick[most]))
        most -= steps[found[-1]]
    return [options[i] for i in reversed(found)]


def nearest(wanted: torch.Tensor, options: Sequence[int]) -> torch.Tensor:
    """Costs [U, N] under which `split` stays near the budgets ``wanted [U]``: the squares of the distances."""
    return (torch.tensor(options, dtype=torch.float64) - wanted.double()[:, None]).square()
