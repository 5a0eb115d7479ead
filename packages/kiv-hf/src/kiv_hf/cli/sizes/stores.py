"""What KIV stores hold in each tier, by the sizes of `kiv_fast`'s own tables and windows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from kiv_fast.cold import TABLE_BYTES
from kiv_fast.device.kept import aside_bytes, sets_for
from kiv_fast.index.index import Index
from kiv_fast.index.samples import Samples
from kiv_fast.memory.scratch import step_bytes, temporary_bytes
from kiv_fast.ops.decoding import page_room
from kiv_fast.ops.triton.results import graph_bytes
from kiv_fast.ops.triton.sizes import Sizes, bytes_of
from kiv_fast.shape import Shape
from kiv_fast.tiers.row_cache import NOTED_BYTES, WAYS
from kiv_fast.tiers.tiered import rows_of_a_step
from kiv_fast.tiers.window import Recent
from kiv_fast.tokens import ID_BYTES
from kiv_fast.tuning import Tuning

if TYPE_CHECKING:
    from kiv_reference.config import KIVConfig

    from .layers import LayerSizes

META = torch.device("meta")


@dataclass(frozen=True)
class Held:
    """Bytes that the KIV layers of one sequence hold, once a text was read in chunks.

    Attributes
    ----------
    window, index, buffers : int
        On the device: sinks and hot tokens; what a step looks at of cold pages; what a step reads at once.
    growth : int
        The most that the device holds beyond that while the text is read, by one layer after another.
    notes : int
        In RAM beside cold pages: sampled queries, errors of the codes, block tables.
    rows : int
        In RAM: rows that were read from disk, kept for the next step.
    pages_in_ram, pages_on_disk : int
        Keys and values of cold pages.
    """

    window: int = 0
    index: int = 0
    buffers: int = 0
    growth: int = 0
    notes: int = 0
    rows: int = 0
    pages_in_ram: int = 0
    pages_on_disk: int = 0

    @property
    def device(self) -> int:
        """Bytes on the device, between two calls."""
        return self.window + self.index + self.buffers

    @property
    def ram(self) -> int:
        """Bytes in RAM."""
        return self.notes + self.rows + self.pages_in_ram


def shape_of(layer: LayerSizes, dtype: torch.dtype) -> Shape:
    """Return the shape of a layer's store, of one sequence, with no numbers in it."""
    return Shape(1, layer.heads, layer.key_width, layer.value_width, dtype, META)


def held(layers: tuple[LayerSizes, ...], config: KIVConfig, dtype: torch.dtype, tokens: int, chunk_tokens: int) -> Held:
    """Count what the stores of KIV layers hold of `tokens`, appended `chunk_tokens` at a time.

    With `ram_bytes` the split between RAM and disk is that of a budget which is used up. Stores move whole pages, so
    that one page may lie on the other side; only a store with pages on disk keeps rows of them, which here all do.
    """
    shapes = [shape_of(layer, dtype) for layer in layers]
    pages, tuning = config.cold_pages(tokens), Tuning()
    windows = [_window(shape, config, tokens, chunk_tokens) for shape in shapes]
    records = [_records(shape, config) for shape in shapes]
    new_pages = min(pages, -(-chunk_tokens // config.page_tokens))
    growth = [most - kept + new_pages * index for (_, kept, most), (index, _) in zip(windows, records, strict=True)]
    sampled = 0 if config.exact else sum(Samples(shape).bytes_at(tokens) for shape in shapes)
    notes = sampled + pages * sum(ram + TABLE_BYTES for _, ram in records)
    page_bytes = [shape.token_bytes * config.page_tokens for shape in shapes]
    rows, spilled = _spilled(shapes, config, pages, page_bytes, notes)
    return Held(
        window=sum(now for now, _, _ in windows),
        index=pages * sum(index for index, _ in records),
        buffers=max((step_bytes(shape, config, tuning) for shape in shapes), default=0),
        growth=sum(kept - now for now, kept, _ in windows) + max(growth, default=0),
        notes=notes,
        rows=rows,
        pages_in_ram=pages * sum(page_bytes) - spilled,
        pages_on_disk=spilled,
    )


@cache
def _records(shape: Shape, config: KIVConfig) -> tuple[int, int]:
    """Return bytes of the index of a page, on the device and in RAM."""
    if config.exact:
        return 0, 0
    index = Index(shape, config, cast("Any", None))  # nothing is sent to a table that nothing is put into
    return index.device_bytes, index.ram_bytes


@cache
def _window(shape: Shape, config: KIVConfig, tokens: int, chunk_tokens: int) -> tuple[int, int, int]:
    """Return bytes of sinks and hot tokens once `tokens` were read, the most between two calls, and in one.

    By the window itself, which moves shapes without numbers about. Where a text is long, what it holds comes round
    again with every page that a chunk ends at.
    """
    full = 4 * (config.sink_tokens + config.hot_tokens + config.page_tokens + chunk_tokens)
    if tokens > full:
        tokens = full + (tokens - full) % math.lcm(config.page_tokens, chunk_tokens)
    recent, length, pages, kept, most = Recent(shape, config), 0, 0, 0, 0
    while length < tokens:
        n = min(chunk_tokens, tokens - length)
        length += n
        most = max(most, recent.bytes_with(n))
        recent.append(*(torch.empty(1, shape.heads, n, w, device=META) for w in (shape.key_width, shape.value_width)))
        recent.drop_pages(config.cold_pages(length) - pages)
        recent.compact()
        pages, kept = config.cold_pages(length), max(kept, recent.nbytes)
    return recent.nbytes, kept, most


def _spilled(shapes: list[Shape], config: KIVConfig, pages: int, page_bytes: list[int], notes: int) -> tuple[int, int]:
    """Return bytes of RAM for rows that were read from disk, and bytes of pages that are there."""
    if config.ram_bytes is None or notes + pages * sum(page_bytes) <= config.ram_bytes:
        return 0, 0
    rows = 0
    if config.disk_bytes is None:
        tuning = Tuning()
        for shape in shapes:
            row = max(shape.key_width, shape.value_width) * shape.dtype.itemsize + NOTED_BYTES
            most = tuning.row_steps * rows_of_a_step(config, shape) * row
            share = min(most, config.ram_bytes // tuning.row_share - rows)
            rows += share if share >= max(most // 2, WAYS * row) else 0
    over = notes + rows + pages * sum(page_bytes) - config.ram_bytes
    # Whole pages go, one of each layer in turn.
    spilled, turn = 0, 0
    while spilled < over and turn < pages * len(page_bytes):
        spilled += page_bytes[turn % len(page_bytes)]
        turn += 1
    return rows, spilled


def kept_bytes(layers: tuple[LayerSizes, ...], config: KIVConfig, dtype: torch.dtype, tokens: int) -> int:
    """Count bytes of the rows that a GPU keeps of cold pages, once there are any, where there is room for all."""
    if not config.cold_pages(tokens):
        return 0
    shapes = [shape_of(layer, dtype) for layer in layers]
    every = [(shape, sets_for(shape, config, Tuning(), None)) for shape in shapes]
    aside = max((aside_bytes(shape, config) for shape in shapes), default=0)
    return aside + sum(sets.bytes_of(shape) for shape, sets in every if sets is not None)


def decode_bytes(layers: tuple[LayerSizes, ...], config: KIVConfig, dtype: torch.dtype, tokens: int) -> int:
    """Count bytes of a GPU's decode step: of buffers that all layers share, estimates above all, and of each layer.

    A layer's own are page ids, and what a graph of its step reads and leaves.
    """
    pages, most, own = config.cold_pages(tokens), 0, 0
    retrieves = config.retrieve_tokens is not None and pages * config.page_tokens > config.candidate_tokens
    recent = config.sink_tokens, config.hot_tokens + config.page_tokens
    for layer in layers:
        candidates = min(config.candidate_tokens, pages * config.page_tokens)
        sizes = Sizes(
            batch=1,
            heads=layer.heads,
            groups=layer.query_heads // layer.heads,
            key_width=layer.key_width,
            value_width=layer.value_width,
            dtype=dtype,
            pages=page_room(pages),
            page_tokens=config.page_tokens,
            candidates=candidates,
            selected=min(config.retrieve_tokens or 1, candidates),
            recent=recent,
            retrieves=retrieves,
            tail=config.tail == "mean",
            keeps=False,
        )
        most = max(most, bytes_of(sizes))
        own += ID_BYTES * sizes.pages + graph_bytes(sizes, wide=False)
    return most + own


def torch_step_bytes(layers: tuple[LayerSizes, ...], config: KIVConfig, dtype: torch.dtype, tokens: int) -> int:
    """Count bytes of temporary numbers of a step in torch's operations, which GPUs take where pages are on disk."""
    pages = config.cold_pages(tokens)
    if config.retrieve_tokens is None or pages * config.page_tokens <= config.candidate_tokens:
        return 0
    shapes = [(shape_of(layer, dtype), layer.query_heads // layer.heads) for layer in layers]
    return max((temporary_bytes(shape, config, Tuning(), groups, pages) for shape, groups in shapes), default=0)


def index_bytes(layer: LayerSizes, config: KIVConfig, dtype: torch.dtype) -> int:
    """Return device bytes of the index of one page of a layer."""
    return _records(shape_of(layer, dtype), config)[0]
