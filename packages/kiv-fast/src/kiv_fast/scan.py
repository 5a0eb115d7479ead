"""A quick look at all pages: chapters of quantised summaries, and the bound on the error of a score from them.

The score of a page is an inner product, ``u . x`` with ``u = [q, alpha |q|]`` and ``x = [mean, spread]``. A chapter
holds x of consecutive pages as 8-bit integers, with a centre and a step for each channel, on the device. What it
returns differs from the true score by at most a bound that it also returns, so a search may discard a page whose score
plus bound is too low, and compute the few others exactly: the selection is that of a full scan.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .host import Table
from .product import Product
from .validate import Shape

LEVELS = 127
"""Largest magnitude of a quantised summary."""

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
    chapter_pages : int
        Pages of a chapter.
    product : Product
        How integers are multiplied.
    """

    def __init__(self, shape: Shape, chapter_pages: int, product: Product) -> None:
        heads, width = shape.heads, 2 * shape.key_width
        self.chapter_pages = chapter_pages
        self._product = product
        self._packed: dict[int, Any] = {}
        self._step = Table((heads, width), torch.float32, shape.device)
        self._centre = Table((heads, width), torch.float32, shape.device)
        self._residual = Table((heads,), torch.float32, shape.device)
        self._length = Table((heads,), torch.float32, shape.device)
        self._reach = Table((heads,), torch.float32, shape.device)
        # The integers, and the tables above.
        self.chapter_bytes = heads * (chapter_pages * (width + product.page_bytes) + 8 * width + 12)

    def put(self, chapter: int, summaries: torch.Tensor) -> None:
        """Quantise the summaries ``[chapter_pages, H, 2 D]`` of a chapter, on the device."""
        low, high = summaries.amin(dim=0), summaries.amax(dim=0)  # [H, 2 D]
        centre = low + (high - low) / 2
        step = ((high - low) / (2 * LEVELS)).clamp(min=torch.finfo(torch.float32).tiny)
        scaled = (summaries - centre) / step
        levels = scaled.round().clamp_(-LEVELS, LEVELS)
        for table in (self._step, self._centre, self._residual, self._length, self._reach):
            table.ensure(chapter + 1)
        self._step.tensor[chapter] = step
        self._centre.tensor[chapter] = centre
        # 1e-4 steps of room for the rounding of the quotient itself.
        self._residual.tensor[chapter] = (scaled - levels).norm(dim=2).amax(dim=0) + 1e-4 * summaries.shape[2] ** 0.5
        self._reach.tensor[chapter] = centre.norm(dim=1)
        self._length.tensor[chapter] = levels.norm(dim=2).amax(dim=0)
        self._packed[chapter] = self._product.pack(levels.transpose(0, 1))

    def free(self, chapters: list[int]) -> None:
        """Forget chapters that nobody holds."""
        for chapter in chapters:
            del self._packed[chapter]

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
        torch.round((exact - high) * (2 * QUERY_LEVELS), out=low)
        flat = parts.view(len(chapters), heads, 2 * count, width)
        scores = torch.empty(heads, count, len(chapters), self.chapter_pages, device=members.device)
        for c, chapter in enumerate(chapters):
            out = self._product(flat[c], self._packed[chapter])
            torch.add(out[:, :count], out[:, count:], alpha=0.5 / QUERY_LEVELS, out=scores[:, :, c])
        offset = (members * centre[:, :, None]).sum(dim=3, keepdim=True)  # [c, H, M, 1]
        scores.mul_(unit.permute(1, 2, 0, 3)).add_(offset.permute(1, 2, 0, 3))
        size = scaled.norm(dim=3)
        length = self._length.tensor[at][:, :, None]
        # Each channel of the two parts together is within half a step of the second.
        left = unit[..., 0] * (0.51 * 0.5 / QUERY_LEVELS * width**0.5)
        # Rounding of a float32 inner product of 2 D terms, here and where the score is computed exactly.
        ulp = (width + 16) * 2.0**-23
        magnitude = members.norm(dim=2) * self._reach.tensor[at][:, :, None] + size * length
        error = size * self._residual.tensor[at][:, :, None] + left * length + ulp * magnitude
        return Approximate(scores.flatten(2), error.amax(dim=0))
