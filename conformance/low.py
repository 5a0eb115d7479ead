"""The low-precision run behind the allowed errors (SPEC 11.3): dense PyTorch in the dtype of computation (SPEC 1.2).

It is not the reference, so that a wrong reference cannot widen the budget it is judged by.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

from .oracle_estimate import Estimates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .oracle import Head, Modifiers, Term
    from .oracle_numbers import Vector


class LowPrecision:
    """One head's tokens in the dtype of computation, and the formulas of SPEC 4 and 5 over them."""

    def __init__(self, head: Head, dtype: torch.dtype) -> None:
        self.head, self.dtype = head, dtype
        self.keys = torch.tensor(head.keys, dtype=dtype)
        self.values = torch.tensor(head.values, dtype=dtype)
        self._reach: dict[tuple[float, ...], tuple[list[float], dict[int, float]]] = {}

    @cached_property
    def _sizes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """|k| of every position, and the largest |k_d| of each page."""
        pages = [page.largest for page in self.head.pages.values()] or torch.zeros(0, self.keys.shape[1])
        return self.keys.double().abs().nan_to_num(), torch.as_tensor(pages, dtype=torch.float64)

    def reach(self, query: Vector) -> tuple[list[float], dict[int, float]]:
        """Sum |q| |k| by position, and |q| times the page's largest |k| by page: what allowed errors grow with."""
        name = tuple(query)
        if name not in self._reach:
            by_token, by_page = (sizes @ torch.tensor(query, dtype=torch.float64).abs() for sizes in self._sizes)
            self._reach[name] = by_token.tolist(), dict(zip(self.head.pages, by_page.tolist(), strict=True))
        return self._reach[name]

    @cached_property
    def _bases(self) -> list[torch.Tensor]:
        """base of SPEC 4.2 of each page, ``[D]``."""
        rows: list[torch.Tensor] = []
        for page in self.head.pages.values():
            centre, step = (torch.tensor(x, dtype=self.dtype) for x in (page.centre, page.step))
            row = self.keys[page.positions].sum(dim=0) / page.count
            row[page.coded] = (centre - 7.5 * step)[page.coded]
            rows.append(row)
        return rows

    def estimates(self, query: Vector, scale: float) -> torch.Tensor:
        """Return estimates ``[T]``, NaN without one (SPEC 4.2); codes and weights, which have no tolerance, are the
        oracle's."""
        scores, asked = self.keys.new_full((len(self.keys),), torch.nan), torch.tensor(query, dtype=self.dtype)
        for page, base in zip(self.head.pages.values(), self._bases, strict=True):
            made = Estimates(query, page, scale, self.head.dtype)
            codes, weights = (torch.tensor(x, dtype=self.dtype) for x in (page.codes, made.weights))
            scores[page.positions] = scale * (asked @ base) + made.unit * (codes[:, page.coded] @ weights)
        return scores

    def index_scores(self, members: Sequence[Vector], scale: float) -> list[list[float]]:
        """Return the estimates of all valid cold positions for each member (SPEC 4.2)."""
        return [self.estimates(query, scale)[list(self.head.page_at)].tolist() for query in members]

    def token_scores(self, members: Sequence[Vector], positions: Sequence[int], scale: float) -> list[list[float]]:
        """Return the scores of tokens for each member (SPEC 4.5)."""
        query = torch.tensor(members, dtype=self.dtype)
        return (scale * (query @ self.keys[list(positions)].T)).tolist()

    def answer(
        self, query: Vector, terms: Sequence[Term], weight: float, m: Modifiers
    ) -> tuple[list[float], list[float]]:
        """Return output and weights of one query; `weight` is what the sink logit leaves for the terms."""
        positions = [i for t in terms for i in t.positions]
        x = m.scale * (self.keys[positions] @ torch.tensor(query, dtype=self.dtype))
        if any(t.estimated for t in terms):
            unread = torch.tensor([i in t.estimated for t in terms for i in t.positions])
            x = torch.where(unread, self.estimates(query, m.scale)[positions], x)
        if m.softcap is not None:
            x = m.softcap * torch.tanh(x / m.softcap)
        parts = x.split([len(t.positions) for t in terms])
        logits = [part[0] if len(part) == 1 else torch.logsumexp(part, dim=0) for part in parts]
        softmax = torch.softmax(torch.stack(logits), dim=0) * min(1.0, weight)
        if all(t.page is None for t in terms):
            values = self.values[[t.positions[0] for t in terms]]
        else:
            values = torch.tensor([t.value for t in terms], dtype=self.dtype)
        return (softmax @ values).tolist(), softmax.tolist()
