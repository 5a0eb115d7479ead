"""The low-precision run behind the budgets of error (SPEC 11.3): dense PyTorch in the dtype of computation (SPEC 1.2).

It is not the reference, so that a wrong reference cannot widen the budget it is judged by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .oracle import Head, Modifiers, Term, Vector


class LowPrecision:
    """One head's tokens in the dtype of computation, and the formulas of SPEC 4 and 5 over them."""

    def __init__(self, head: Head, dtype: torch.dtype) -> None:
        self.head, self.dtype = head, dtype
        self.keys = torch.tensor(head.keys, dtype=dtype)
        self.values = torch.tensor(head.values, dtype=dtype)

    def page_scores(self, members: Sequence[Vector], scale: float) -> list[list[float]]:
        """Scores of all pages for each member (SPEC 4.2)."""
        query = torch.tensor(members, dtype=self.dtype)
        means: list[torch.Tensor] = []
        spreads: list[torch.Tensor] = []
        for page in self.head.pages.values():
            keys = self.keys[page.positions]
            means.append(keys.sum(dim=0) / len(page.positions))
            spreads.append((keys - means[-1]).abs().amax(dim=0))
        spread = query.abs() @ torch.stack(spreads).T
        return (scale * (query @ torch.stack(means).T + self.head.config.spread_weight * spread)).tolist()

    def token_scores(self, members: Sequence[Vector], positions: Sequence[int], scale: float) -> list[list[float]]:
        """Scores of tokens for each member (SPEC 4.5)."""
        query = torch.tensor(members, dtype=self.dtype)
        return (scale * (query @ self.keys[list(positions)].T)).tolist()

    def answer(
        self, query: Vector, terms: Sequence[Term], weight: float, m: Modifiers
    ) -> tuple[list[float], list[float]]:
        """Output and weights of one query; `weight` is what the sink logit leaves for the terms."""
        rows = self.keys[[i for t in terms if t.kind != "span" for i in t.positions]]
        means = [self.keys[list(t.positions)].mean(dim=0) for t in terms if t.kind == "span"]
        if means:
            rows = torch.cat([rows, torch.stack(means)])
        x = m.scale * (rows @ torch.tensor(query, dtype=self.dtype))
        if m.softcap is not None:
            x = m.softcap * torch.tanh(x / m.softcap)
        logits: list[torch.Tensor] = []
        start = 0
        for term in terms:  # spans come last
            stop = start + (1 if term.kind == "span" else len(term.positions))
            logit = x[start] if stop == start + 1 else torch.logsumexp(x[start:stop], dim=0)
            logits.append(logit + math.log(len(term.positions)) if term.kind == "span" else logit)
            start = stop
        softmax = torch.softmax(torch.stack(logits), dim=0) * min(1.0, weight)
        if all(t.kind == "token" for t in terms):
            values = self.values[[t.positions[0] for t in terms]]
        else:
            values = torch.tensor([t.value for t in terms], dtype=self.dtype)
        return (softmax @ values).tolist(), softmax.tolist()
