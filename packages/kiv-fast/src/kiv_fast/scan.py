"""A quick look at all pages: chapters of quantised summaries, and the bound on the error of a score from them.

The score of a page is an inner product, ``u . x`` with ``u = [q, alpha |q|]`` and ``x = [mean, spread]``. A chapter
holds x of consecutive pages as 8-bit integers, with a centre and a step for each channel, packed for an integer matrix
product. What it returns differs from the true score by at most a bound that it also returns, so a search may discard a
page whose score plus bound is too low, and compute the few others exactly: the selection is that of a full scan.

Where torch has no packed integer product (its x86 engines have one), every page is scored exactly.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch

from .host import Table
from .validate import Shape

LEVELS = 127
"""Largest magnitude of a quantised summary."""

QUERY_LEVELS = 63
"""Largest magnitude of a quantised query part: 7 bits, so that no engine saturates."""

ZERO_POINT = 64


class Approximate(NamedTuple):
    """Scores of the pages of some chapters."""

    scores: torch.Tensor  # [H, M, pages]
    error: torch.Tensor  # [H, M], no score is further from the true one


class Scanner:
    """Chapters by id.

    Parameters
    ----------
    shape : of the store
    spread_weight : alpha of the page score (SPEC 4.2)
    chapter_pages : int
        Pages of a chapter.
    """

    def __init__(self, shape: Shape, spread_weight: float, chapter_pages: int) -> None:
        heads, width = shape.heads, 2 * shape.key_width
        self.chapter_pages = chapter_pages
        self._spread_weight = spread_weight
        self._packed: dict[int, list[Any]] = {}
        self._step = Table((heads, width), torch.float32, shape.device)
        self._centre = Table((heads, width), torch.float32, shape.device)
        self._residual = Table((heads,), torch.float32, shape.device)
        self._length = Table((heads,), torch.float32, shape.device)
        self._reach = Table((heads,), torch.float32, shape.device)
        self._zeros = torch.zeros(chapter_pages, dtype=torch.int64)
        self._ones = torch.ones(chapter_pages, dtype=torch.float64)
        # The packed integers, a scale, a zero point and a sum for each page, and the tables above.
        page = width + 16
        self.chapter_bytes = heads * (chapter_pages * page + 8 * width + 12)

    @staticmethod
    def available(shape: Shape) -> bool:
        """Whether chapters can be built for such a store."""
        engine: str = torch.backends.quantized.engine
        usable = shape.device.type == "cpu" and shape.compute == torch.float32 and engine in ("x86", "fbgemm", "onednn")
        product = getattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32", None)
        return usable and product is not None and hasattr(torch, "quantize_per_channel")

    def put(self, chapter: int, summaries: torch.Tensor) -> None:
        """Quantise the summaries ``[chapter_pages, H, 2 D]`` of a chapter."""
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
        self._packed[chapter] = [self._pack(levels[:, head].contiguous()) for head in range(summaries.shape[1])]

    def _pack(self, levels: torch.Tensor) -> Any:
        with warnings.catch_warnings():
            # Torch means to drop quantised tensors, the only way to its packed product; `available` will notice.
            warnings.simplefilter("ignore", UserWarning)
            tensor = torch.quantize_per_channel(levels, self._ones, self._zeros, 0, torch.qint8)
        return torch.ops.quantized.linear_prepack(tensor, None)

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
            at = chapters
        step, centre = self._step.tensor[at], self._centre.tensor[at]  # [c, H, 2 D]
        scaled = members * step[:, :, None]  # [c, H, M, 2 D]
        unit = (scaled.abs().amax(dim=3, keepdim=True) / QUERY_LEVELS).clamp_(min=torch.finfo(torch.float32).tiny)
        exact = scaled / unit
        parts = torch.empty(len(chapters), heads, 2, count, width)
        high, low = parts.unbind(dim=2)
        torch.round(exact, out=high)
        torch.round((exact - high) * (2 * QUERY_LEVELS), out=low)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        flat = parts.view(len(chapters), heads, 2 * count, width)
        out = torch.stack(
            [
                product(flat[c, head], 1.0, ZERO_POINT, pack)
                for c, chapter in enumerate(chapters)
                for head, pack in enumerate(self._packed[chapter])
            ]
        ).view(len(chapters), heads, 2, count, self.chapter_pages)
        offset = (members * centre[:, :, None]).sum(dim=3, keepdim=True)  # [c, H, M, 1]
        scores = torch.add(out[:, :, 0], out[:, :, 1], alpha=0.5 / QUERY_LEVELS).mul_(unit).add_(offset)
        size = scaled.norm(dim=3)
        length = self._length.tensor[at][:, :, None]
        # Each channel of the two parts together is within half a step of the second.
        left = unit[..., 0] * (0.51 * 0.5 / QUERY_LEVELS * width**0.5)
        # Rounding of a float32 inner product of 2 D terms, here and where the score is computed exactly.
        ulp = (width + 16) * 2.0**-23
        magnitude = members.norm(dim=2) * self._reach.tensor[at][:, :, None] + size * length
        error = size * self._residual.tensor[at][:, :, None] + left * length + ulp * magnitude
        return Approximate(scores.permute(1, 2, 0, 3).reshape(heads, count, -1), error.amax(dim=0))
