"""Where tensors are, in the structures that C is given: addresses, sizes and distances."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof
from typing import Any

import numpy as np
import torch

from . import structures as c
from .arguments import Found, PagedTile, Queries, Rows, Tile

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

WORTH_THREADS = 1 << 14
"""Products of members and tokens: fewer are over before a second thread is awake."""


def query_of(queries: Queries, tokens: int, group_max: bool) -> tuple[c.Query, object]:
    """Return members and modifiers, and what holds their numbers; `tokens` are to be looked at for each."""
    numbers, sinks = queries.query, queries.sink_logits
    heads, groups, count, width = numbers.shape
    if not numbers.is_contiguous():  # else the queries of a KV head lie together as they are
        numbers = numbers.contiguous()
    if sinks is not None:
        sinks = sinks.contiguous()
    query = c.Query(
        numbers.data_ptr(),
        None if sinks is None else sinks.data_ptr(),
        heads,
        groups * count,
        width,
        queries.scale,
        queries.softcap or 0.0,
        group_max,
        torch.get_num_threads() if heads * groups * count * tokens >= WORTH_THREADS else 1,
    )
    return query, (numbers, sinks)


def always_of(queries: Queries, always: Sequence[Tile | PagedTile]) -> tuple[c.Attend, int, list[object]]:
    """Return tokens that are always attended, how many; and what holds their numbers, to be kept as long."""
    runs, tokens, held = (c.Run * max(1, len(always)))(), 0, list[object]()
    for place, tile in enumerate(always):
        runs[place] = _run(tile, held)
        tokens += runs[place].count
    count = queries.query.shape[2]
    places = queries.positions if count > 1 or queries.among is not None else (c.Long * 1)(queries.start)
    position = places.data_ptr() if isinstance(places, torch.Tensor) else addressof(places)
    held += [runs, places]
    return c.Attend(addressof(runs), len(always), position, count), tokens, held


def rows_of(
    rows: Rows, ids: int, at: torch.Tensor | None, head: int | None = None
) -> tuple[c.Rows, torch.Tensor | None]:
    """Tell where rows are: in the pages or, of cold tokens `at`, gathered from them; of all heads or of one."""
    if at is None:
        assert rows.table is not None, "neither pages nor places"
        return _pages(rows.table if head is None else rows.table[:, head:], ids), None
    found = rows.gather(at.long(), None if head is None else torch.tensor([head], device="cpu")).contiguous()
    width = found.shape[2]
    return c.Rows(found.data_ptr(), None, 0, 0, found.shape[1] * width, width, KINDS[found.dtype]), found


def found_of(found: Found) -> c.Found:
    """Tell where candidates and selection are, or are to be."""
    places = found.at.data_ptr(), found.raw.data_ptr(), found.chosen.data_ptr(), None
    return c.Found(*places, found.at.shape[1], found.width, found.chosen.shape[1])


def _pages(table: torch.Tensor, ids: int) -> c.Rows:
    """Return rows in pages; of a table of some heads, as far apart as those of all."""
    size, width = table.shape[2:]
    return c.Rows(table.data_ptr(), ids, size, table.stride(0) // (size * width), 0, width, KINDS[table.dtype])


def _run(tile: Tile | PagedTile, held: list[object]) -> c.Run:
    """Return consecutive tokens, where they lie."""
    valid = None if tile.valid is None else tile.valid.contiguous()
    held.append(valid)
    mask = None if valid is None else valid.data_ptr()
    if isinstance(tile, PagedTile):
        ids = np.ascontiguousarray(tile.ids)
        held.append(ids)
        keys, values = _pages(tile.keys, ids.ctypes.data), _pages(tile.values, ids.ctypes.data)
        return c.Run(keys, values, tile.first, len(ids) * tile.keys.shape[2], mask)
    parts: list[Any] = []
    for part in (tile.keys, tile.values):
        batch, heads, row, last = part.stride()
        assert (row, last) == (part.shape[3], 1), "rows apart"
        place = part.data_ptr() + (tile.row * batch + tile.start * row) * part.element_size()
        parts.append(c.Rows(place, None, 0, 0, heads, row, KINDS[part.dtype]))
    return c.Run(*parts, tile.first, tile.count, mask)


def copy_of(tokens: torch.Tensor, window: torch.Tensor, at: int) -> c.Copy:
    """Return tokens and where they go; rows of numbers lie together on both sides."""
    batch, heads, count, width = tokens.shape
    size = tokens.element_size()
    there, here = window.stride(), tokens.stride()
    assert here[3] == 1, "numbers apart"
    place = window.data_ptr() + at * width * size
    distances = here[0] * size, here[1] * size, here[2] * size, there[0] * size, there[1] * size
    return c.Copy(tokens.data_ptr(), place, batch, heads, count, width * size, KINDS[tokens.dtype], *distances)
