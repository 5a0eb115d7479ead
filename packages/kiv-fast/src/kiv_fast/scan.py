"""A quick look at all pages: chapters of quantised summaries, and the bound on the error of a score from them.

The score of a page is an inner product, ``u . x`` with ``u = [q, alpha |q|]`` and ``x = [mean, spread]``. A chapter
holds x of consecutive pages as 8-bit integers, with a centre and a step for each channel, on the device. Chapters of a
row grow as `layout.chapter_stops` says. What a scan returns differs from the true score by at most a bound that it also
returns, so a search may discard a page whose score plus bound is too low, and compute the few others exactly: the
selection is that of a full scan.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .host import Table
from .product import Product
from .validate import Shape

LEVELS = 127
"""Largest magnitude of a quantised summary."""

LEAST_ERROR = 1e-36
"""Added to every bound, for what sums of denormal numbers lose."""

QUERY_LEVELS = 63
"""Largest magnitude of a quantised query part."""


class Approximate(NamedTuple):
    """Scores of the pages of some chapters."""

    scores: torch.Tensor  # [H, M, pages]
    error: torch.Tensor  # [H, M], no score is further from the true one


class Scanner:
    """Chapters by id.

    Parameters
    ----------
    shape : of the store
    product : Product
        How integers are multiplied.
    """

    def __init__(self, shape: Shape, product: Product) -> None:
        heads, width = shape.heads, 2 * shape.key_width
        self._product = product
        self._packed: dict[int, tuple[int, Any]] = {}  # pages and integers
        self.nbytes = 0  # of all chapters
        self._step = Table((heads, width), torch.float32, shape.device)
        self._centre = Table((heads, width), torch.float32, shape.device)
        self._bounds = Table((heads, 3), torch.float32, shape.device)
        self.page_bytes = heads * (width + product.page_bytes)
        self.table_bytes = heads * (8 * width + 12)

    def chapter_bytes(self, pages: int) -> int:
        """Bytes of a chapter of so many pages: the integers, and its part of the tables."""
        return pages * self.page_bytes + self.table_bytes

    def put(self, chapter: int, summaries: torch.Tensor) -> None:
        """Quantise the summaries ``[pages, H, 2 D]`` of a chapter, on the device."""
        low, high = summaries.amin(dim=0), summaries.amax(dim=0)  # [H, 2 D]
        centre = low + (high - low) / 2
        step = ((high - low) / (2 * LEVELS)).clamp(min=torch.finfo(torch.float32).tiny)
        scaled = (summaries - centre) / step
        levels = scaled.round().clamp_(-LEVELS, LEVELS)
        for table in (self._step, self._centre, self._bounds):
            table.ensure(chapter + 1)
        self._step.tensor[chapter] = step
        self._centre.tensor[chapter] = centre
        self._bounds.tensor[chapter] = self._bound(scaled - levels, levels, centre)
        pages = summaries.shape[0]
        self._packed[chapter] = pages, self._product.pack(levels.transpose(0, 1))
        self.nbytes += self.chapter_bytes(pages)

    def _bound(self, residual: torch.Tensor, levels: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
        """What the error of a score is at most, for each unit of a query's size, of its levels, and of its length.

        Returns
        -------
        Tensor [H, 3]
        """
        width = levels.shape[2]
        # 1e-4 steps of room for the rounding of the quotient itself.
        rest = residual.norm(dim=2).amax(dim=0) + 1e-4 * width**0.5
        length = levels.norm(dim=2).amax(dim=0)
        # Each channel of the two parts of a query together is within half a step of the second.
        left = (0.51 * 0.5 / QUERY_LEVELS * width**0.5) * length
        # Rounding of a float32 inner product of 2 D terms, here and where the score is computed exactly.
        ulp = (width + 16) * 2.0**-23
        return torch.stack([rest + ulp * length, left, ulp * _length(centre)], dim=1)

    def free(self, chapters: list[int]) -> None:
        """Forget chapters that nobody holds."""
        for chapter in chapters:
            self.nbytes -= self.chapter_bytes(self._packed.pop(chapter)[0])

    def scores(self, members: torch.Tensor, chapters: list[int]) -> Approximate:
        """Approximate page scores of ``members [H, M, 2 D]``, from `page_query`, in the order of `chapters`."""
        heads, count, width = members.shape
        if chapters[-1] - chapters[0] == len(chapters) - 1:
            at: Any = slice(chapters[0], chapters[-1] + 1)
        else:
            at = torch.tensor(chapters, device=members.device)
        step, centre = self._step.tensor[at], self._centre.tensor[at]  # [c, H, 2 D]
        scaled = members * step[:, :, None]  # [c, H, M, 2 D]
        unit = (scaled.abs().amax(dim=3, keepdim=True) / QUERY_LEVELS).clamp_(min=torch.finfo(torch.float32).tiny)
        exact = scaled / unit
        parts = torch.empty(len(chapters), heads, 2, count, width, device=members.device)
        high, low = parts.unbind(dim=2)
        torch.round(exact, out=high)
        torch.round(exact.sub_(high).mul_(2 * QUERY_LEVELS), out=low)
        flat = parts.view(len(chapters), heads, 2 * count, width)
        offset = (members * centre[:, :, None]).sum(dim=3, keepdim=True)  # [c, H, M, 1]
        packed = [self._packed[chapter] for chapter in chapters]
        scores = torch.empty(heads, count, sum(pages for pages, _ in packed), device=members.device)
        start = 0
        for c, (pages, levels) in enumerate(packed):
            out, both = scores[:, :, start : start + pages], self._product(flat[c], levels)
            torch.add(both[:, :count], both[:, count:], alpha=0.5 / QUERY_LEVELS, out=out)
            out.mul_(unit[c]).add_(offset[c])
            start += pages
        size, reach = _length(scaled), _length(members)  # [c, H, M], [H, M]
        bounds = self._bounds.tensor[at]  # [c, H, 3]
        error = size * bounds[:, :, :1] + unit[..., 0] * bounds[:, :, 1:2] + reach * bounds[:, :, 2:]
        return Approximate(scores, error.amax(dim=0) + LEAST_ERROR)


def _length(vectors: torch.Tensor) -> torch.Tensor:
    """Euclidean length over the last axis, in float32; by way of float64, where no square is lost to underflow."""
    return torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64).to(vectors.dtype)
