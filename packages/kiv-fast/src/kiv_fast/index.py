"""What is known of cold pages without reading them: the summaries of pages and of spans (SPEC 3).

Summaries of spans are all used in every step and live on the device. Those of pages are looked at through the integers
of `scan`; only the few that decide are read as they are, from RAM.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from kiv_reference.config import KIVConfig

from .host import Table
from .layout import Row
from .pinning import Pinning
from .transfer import Transfer
from .validate import Shape


class Summary(NamedTuple):
    """Pages of one sequence; zeros where a page has no valid token."""

    key: torch.Tensor  # [n, H, 2 D], mean key and spread side by side
    value: torch.Tensor  # [n, H, DV]


def summarise(key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None, dtype: torch.dtype) -> Summary:
    """Summarise pages (SPEC 3.1).

    Parameters
    ----------
    key : [n, H, P, D]
    value : [n, H, P, DV]
    valid : bool [n, P], or None if all are
    """
    key, value = key.to(dtype), value.to(dtype)
    if valid is None:
        mean = key.mean(dim=2)  # [n, H, D]
        spread = (key - mean[:, :, None]).abs_().amax(dim=2)
        return Summary(torch.cat([mean, spread], dim=2), value.mean(dim=2))
    seen = valid[:, None, :, None]
    count = valid.sum(dim=1).clamp(min=1).to(dtype)[:, None, None]
    mean = key.masked_fill(~seen, 0).sum(dim=2) / count
    spread = (key - mean[:, :, None]).abs_().masked_fill(~seen, 0).amax(dim=2)
    return Summary(torch.cat([mean, spread], dim=2), value.masked_fill(~seen, 0).sum(dim=2) / count)


class Sizes:
    """How different in size the summaries of a row's pages are: differences of unlike numbers are not exact.

    Which way a call is computed depends on the pages that it sees alone, so that repeating it gives the same bits.

    Attributes
    ----------
    finite : int
        Leading pages whose mean values are all numbers.
    alike : int
        Leading pages, among those, whose mean keys and values are alike in size, a head at a time.
    """

    LIMIT = 16.0

    def __init__(self, heads: int) -> None:
        self._least = torch.full((2, heads), torch.inf, device="cpu")
        self._most = torch.zeros(2, heads, device="cpu")
        self.finite = self.alike = 0

    def add(self, summary: Summary, pages: int) -> None:
        """Take in new pages after the first `pages`, in RAM; zeros, as of a page without a token, are like no other."""
        width = summary.key.shape[2] // 2
        parts = (summary.key[:, :, :width], summary.value)
        size = torch.stack([part.abs().amax(dim=2).float() for part in parts], dim=1)  # [n, 2, H]
        least = torch.minimum(size.cummin(dim=0).values, self._least)
        most = torch.maximum(size.cummax(dim=0).values, self._most)
        self._least, self._most = least[-1], most[-1]
        good = torch.isfinite(summary.value).flatten(1).all(dim=1)
        if self.finite == pages:
            self.finite += _leading(good)
        if self.alike == pages:
            self.alike += _leading(good & (most <= self.LIMIT * least).flatten(1).all(dim=1))

    def cut(self, pages: int) -> None:
        """Forget all but the first `pages` pages; what stays may then be called unlike that is not."""
        self.finite, self.alike = min(self.finite, pages), min(self.alike, pages)


def _leading(flags: torch.Tensor) -> int:
    """How many flags of bool ``[n]`` come before the first that is not set."""
    return int(flags.cumprod(dim=0).sum())


class Index:
    """Summaries by page id and by span id."""

    def __init__(self, shape: Shape, config: KIVConfig, pinning: Pinning, transfer: Transfer) -> None:
        heads, width, value_width = shape.heads, shape.key_width, shape.value_width
        dtype, device, host = shape.compute, shape.device, torch.device("cpu")
        self._span_pages, self._transfer = config.span_pages, transfer
        self.keys = Table((heads, 2 * width), dtype, host, pinning, huge=True)
        self.values = Table((heads, value_width), dtype, host, pinning, huge=True)
        self.span_keys = Table((heads, width), dtype, device)
        self.span_values = Table((heads, value_width), dtype, device)
        self.span_counts = Table((), dtype, device)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page's summary, in RAM."""
        return self.keys.record_bytes + self.values.record_bytes

    @property
    def span_bytes(self) -> int:
        """Bytes of one span's summary, on the device."""
        return self.span_keys.record_bytes + self.span_values.record_bytes + self.span_counts.record_bytes

    def put(self, pages: list[int], summary: Summary) -> None:
        """Store the summaries of new pages, which are in RAM."""
        for table, rows in ((self.keys, summary.key), (self.values, summary.value)):
            table.use(pages)
            if pages[-1] - pages[0] == len(pages) - 1:
                table.tensor[pages[0] : pages[-1] + 1] = rows
            else:
                table.tensor[pages] = rows

    def forget(self, pages: list[int]) -> None:
        """Return the memory of the summaries of pages that nobody holds."""
        self.keys.forget(pages)
        self.values.forget(pages)

    def forget_spans(self, spans: list[int]) -> None:
        """Return the memory of the summaries of spans that nobody holds."""
        for table in (self.span_keys, self.span_values, self.span_counts):
            table.forget(spans)

    def put_span(self, span: int, row: Row, first: int) -> None:
        """Store the summary of a span: `span_pages` pages of `row` from `first` on, or those there are (SPEC 3.2)."""
        for table in (self.span_keys, self.span_values, self.span_counts):
            table.use([span])
        part = first, first + self._span_pages
        key, value, count = self.merge(row.pages.tolist(*part), row.counts.tolist(*part))
        self.span_keys.tensor[span] = self._transfer.send(key)
        self.span_values.tensor[span] = self._transfer.send(value)
        self.span_counts.tensor[span] = count

    def merge(self, pages: list[int], counts: list[int]) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Mean key ``[H, D]``, mean value ``[H, DV]``, in RAM, and count over pages (SPEC 3.2); zeros if it is 0."""
        count = sum(counts)
        table = self.keys.tensor
        keep = [(page, n) for page, n in zip(pages, counts, strict=True) if n]
        ids = torch.tensor([page for page, _ in keep], dtype=torch.int64, device="cpu")
        weights = torch.tensor([n / max(count, 1) for _, n in keep], dtype=table.dtype, device="cpu")
        mean = table.index_select(0, ids)[:, :, : table.shape[2] // 2]  # [k, H, D]
        values = self.values.tensor.index_select(0, ids)
        return (weights[:, None, None] * mean).sum(0), (weights[:, None, None] * values).sum(0), count
