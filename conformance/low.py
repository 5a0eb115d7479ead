"""The low-precision run behind the allowed errors (SPEC 11.3): dense PyTorch in the dtype of computation (SPEC 1.2).

It is not the reference, so that a wrong reference cannot widen the budget it is judged by.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

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
        self._magnitudes: dict[tuple[float, ...], tuple[list[float], dict[int, float]]] = {}

    @cached_property
    def _sizes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """|k| of every position, and the largest |k_d| of each page."""
        pages = [page.largest for page in self.head.pages.values()] or torch.zeros(0, self.keys.shape[1])
        return self.keys.double().abs().nan_to_num(), torch.as_tensor(pages, dtype=torch.float64)

    def magnitudes(self, query: Vector) -> tuple[list[float], dict[int, float]]:
        """Sum |q| |k| by position, and |q| times the page's largest |k| by page: what allowed errors grow with."""
        name = tuple(query)
        if name not in self._magnitudes:
            by_token, by_page = (sizes @ torch.tensor(query, dtype=torch.float64).abs() for sizes in self._sizes)
            self._magnitudes[name] = by_token.tolist(), dict(zip(self.head.pages, by_page.tolist(), strict=True))
        return self._magnitudes[name]

    @cached_property
    def _bases(self) -> torch.Tensor:
        """base of SPEC 4.2 of each page, ``[P, D]``."""
        rows: list[torch.Tensor] = []
        for page in self.head.pages.values():
            centre, step = (torch.tensor(x, dtype=self.dtype) for x in (page.centre, page.step))
            row = self.keys[page.positions].sum(dim=0) / page.count
            row[page.coded] = (centre - 7.5 * step)[page.coded]
            rows.append(row)
        return torch.stack(rows)

    @cached_property
    def _codes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of the cold tokens, ``[T, coded channels]``, and which of the pages each is of."""
        pages = list(self.head.pages.values())
        codes = torch.tensor([row for page in pages for row in page.codes], dtype=self.dtype)
        return codes, torch.tensor([n for n, page in enumerate(pages) for _ in page.positions])

    def estimates(self, query: Vector, scale: float) -> torch.Tensor:
        """Return estimates ``[T]``, NaN without one (SPEC 4.2); codes and weights, which have no tolerance, are the
        oracle's."""
        scores, (made, _) = self.keys.new_full((len(self.keys),), torch.nan), self.head.estimates(query, scale)
        if made:
            codes, page = self._codes
            weights = torch.tensor([of_page.weights for of_page in made], dtype=self.dtype)
            units = torch.tensor([of_page.unit for of_page in made], dtype=self.dtype)
            bases = scale * (self._bases @ torch.tensor(query, dtype=self.dtype))
            scores[list(self.head.page_at)] = bases[page] + units[page] * (codes * weights[page]).sum(dim=1)
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
        if len(positions) > len(terms):
            parts = x.split([len(t.positions) for t in terms])
            x = torch.stack([torch.logsumexp(part, dim=0) for part in parts])
        softmax = torch.softmax(x, dim=0) * min(1.0, weight)
        if all(t.page is None for t in terms):
            values = self.values[[t.positions[0] for t in terms]]
        else:
            values = torch.tensor([t.value for t in terms], dtype=self.dtype)
        return (softmax @ values).tolist(), softmax.tolist()
