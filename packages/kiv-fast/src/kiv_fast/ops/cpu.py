"""The operations compiled for the CPU (csrc/): rows are read where they lie, in their own dtype.

Sizes and addresses go to C in structures; the numbers stay in tensors that this module holds. A structure holds an
address and no tensor: what it points to is kept in `held` for as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof, byref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from . import structures as c
from .arguments import Found, Masses, PagedTile, PageIndex, Queries, Rows, Tile
from .library import Library

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

MOST_CHANNELS = 1 << 15
"""What numbers of 16 bits count."""

WORTH_THREADS = 1 << 14
"""Products of members and tokens: fewer are over before a second thread is awake."""

REFUSED = "the machine refused memory for a step"


@dataclass(frozen=True)
class Scanned:
    """What `estimate` leaves to the operations after it; C's part of it holds until the next estimate."""

    index: c.Index
    query: c.Query
    estimates: c.Estimates
    held: tuple[object, ...]

    def of_head(self, head: int) -> tuple[c.Query, c.Estimates]:
        """The same of one head alone."""
        query, found = self.query, self.estimates
        place = query.query + 4 * head * query.members * query.width
        one = c.Query(place, None, 1, query.members, query.width, query.scale, 0.0, query.group_max, query.threads)
        lists = found.name, found.score, None, found.start + 8 * head, found.count + 8 * head
        return one, c.Estimates(None, found.least, None, None, *lists)


class CpuOps:
    """The operations of a library.

    Parameters
    ----------
    library : Library
    kept_bytes : int
        Estimates of a block that take no more are kept until the block is over.
    """

    name = "cpu"
    in_place = True

    def __init__(self, library: Library, kept_bytes: int) -> None:
        self._library, self._kept_bytes = library, kept_bytes
        self._buffers: dict[str, torch.Tensor] = {}

    def _buffer(self, name: str, *shape: int) -> torch.Tensor:
        """Floats of this shape that the next use of the name overwrites: fresh memory is slower than the arithmetic."""
        held = self._buffers.get(name)
        if held is None or held.shape != shape:
            held = self._buffers[name] = torch.empty(shape, device="cpu")
        return held

    def finite(self, *tensors: torch.Tensor) -> list[bool]:
        """Tell whether all numbers are finite (`Ops.finite`)."""
        found: list[bool] = []
        for tensor in tensors:
            whole = tensor.contiguous()
            numbers = whole.data_ptr(), whole.numel(), KINDS[whole.dtype]
            found.append(bool(self._library.finite(*numbers, torch.get_num_threads())))
        return found

    def append(self, pairs: tuple[tuple[torch.Tensor, torch.Tensor, int], ...]) -> list[bool]:
        """Write tokens into windows, and tell of each tensor whether its numbers are finite.

        Parameters
        ----------
        pairs : of tokens [B, H, n, W] and window [B, H, capacity, W], and the place of the first token there
        """
        copies = (c.Copy * len(pairs))()
        for number, pair in enumerate(pairs):
            copies[number] = _copy(*pair)
        odd = self._library.append(addressof(copies), len(pairs))
        return [not odd & bit for bit in (1, 2)[: len(pairs)]]

    def estimate(self, index: PageIndex, queries: Queries, most: int) -> Scanned:
        """Estimate every cold token (`Ops.estimate`)."""
        ids, unseen = np.ascontiguousarray(index.ids), index.unseen
        heads, groups, count, width = queries.query.shape
        members = groups * count
        page = c.Index(
            index.codes.tensor.data_ptr(),
            index.channels.tensor.data_ptr(),
            index.step.tensor.data_ptr(),
            index.base.tensor.data_ptr(),
            index.mean.tensor.data_ptr(),
            ids.ctypes.data,
            None if unseen is None else unseen.data_ptr(),
            index.pages,
            heads,
            index.page_tokens,
            index.channels.tensor.shape[2] // 2,
            width,
            index.mean.tensor.shape[2],
        )
        query, numbers = _query(queries, index.tokens, index.group == "max")
        kept = None
        if index.page_tokens % 16 == 0 and 4 * heads * members * index.tokens <= self._kept_bytes:
            kept = self._buffer("estimates", heads, members, index.tokens)
        found = c.Estimates(None if kept is None else kept.data_ptr(), most)
        if self._library.estimate(byref(page), byref(query), byref(found)):
            raise MemoryError(REFUSED)
        return Scanned(page, query, found, (numbers, ids, kept, unseen))

    def select(self, estimates: Scanned, keys: Rows, candidates: int, selected: int) -> Found:
        """Choose candidates and select among them (`Ops.select`)."""
        heads, members = estimates.query.heads, estimates.query.members
        room, selected = min(2 * candidates, estimates.estimates.least), min(selected, candidates)
        at = torch.empty(heads, room, dtype=torch.int32, device="cpu")
        chosen = torch.empty(heads, selected, dtype=torch.int32, device="cpu")
        raw = self._buffer("scores", heads, members, room)
        late = (c.Int * heads)()
        found = c.Found(at.data_ptr(), raw.data_ptr(), chosen.data_ptr(), addressof(late), room, candidates, selected)
        query, scores = byref(estimates.query), byref(estimates.estimates)
        if keys.table is None and self._library.best(query, scores, byref(found)):
            raise MemoryError(REFUSED)
        rows, _held = _rows(keys, estimates, at[:, :candidates] if keys.table is None else None)
        if self._library.select(query, byref(rows), scores, None, byref(found)):
            raise MemoryError(REFUSED)
        return Found(at, raw, chosen, candidates, heads * candidates, [head for head in range(heads) if late[head]])

    def widen(self, estimates: Scanned, keys: Rows, found: Found, candidates: int) -> Found:
        """Take more candidates for heads that are late (`Ops.widen`)."""
        had, selected, room = found.width, found.chosen.shape[1], found.at.shape[1]
        widened = torch.zeros(found.at.shape[0], dtype=torch.bool, device="cpu")
        found.at[:, had:] = -1
        found.raw[:, :, had:] = -torch.inf
        for head in found.late:
            query, scores = estimates.of_head(head)
            at, raw, chosen = found.at[head], found.raw[head], found.chosen[head]
            known_at, known_raw = at.clone(), raw.clone()
            known = c.Found(known_at.data_ptr(), known_raw.data_ptr(), None, None, room, had, selected)
            new = c.Found(at.data_ptr(), raw.data_ptr(), chosen.data_ptr(), None, room, candidates, selected)
            more = None
            if keys.table is None:
                if self._library.best(byref(query), byref(scores), byref(new)):
                    raise MemoryError(REFUSED)
                more = at[:candidates][torch.isin(at[:candidates], known_at[:had], invert=True)][None]
            rows, _held = _rows(keys, estimates, more, head)
            if self._library.select(byref(query), byref(rows), byref(scores), byref(known), byref(new)):
                raise MemoryError(REFUSED)
            widened[head] = True
        count = found.keys + len(found.late) * (candidates - had)
        return Found(found.at, found.raw, found.chosen, candidates, count, [], widened)

    def attend(
        self,
        queries: Queries,
        always: Sequence[Tile | PagedTile],
        finite: bool,
        retrieved: tuple[Scanned, Found, Rows] | None,
        tail: bool,
        out: torch.Tensor,
    ) -> Masses:
        """One softmax over everything (`Ops.attend`)."""
        held: list[object] = []
        runs = (c.Run * max(1, len(always)))(*[_run(tile, held) for tile in always])
        count = queries.query.shape[2]
        places = queries.positions if count > 1 or queries.among is not None else (c.Long * 1)(queries.start)
        position = places.data_ptr() if isinstance(places, torch.Tensor) else addressof(places)
        asked = c.Attend(addressof(runs), len(always), position, count, out.shape[2], finite=finite)
        if retrieved is None:
            query, numbers = _query(queries, sum([run.count for run in runs]), False)
            held.append(numbers)
        else:
            query = self._retrieved(asked, retrieved, tail, held)
        masses = torch.empty(2, query.heads, query.members, device="cpu")
        asked.out, asked.out_head, asked.out_kind = out.data_ptr(), out.stride(0), KINDS[out.dtype]
        asked.exact = masses.data_ptr()
        asked.estimated = asked.exact + 2 * masses.nbytes // 4
        if self._library.attend(byref(query), byref(asked)):
            raise MemoryError(REFUSED)
        return Masses(masses)

    def _retrieved(
        self, asked: c.Attend, retrieved: tuple[Scanned, Found, Rows], tail: bool, held: list[object]
    ) -> c.Query:
        """Add selection and tail to what is attended."""
        estimates, found, values = retrieved
        at, chosen, raw = found.at, found.chosen, found.raw
        if at.dtype != torch.int32:
            at, chosen = at.int(), chosen.int()
        one = c.Found(at.data_ptr(), raw.data_ptr(), chosen.data_ptr(), None, at.shape[1], found.width, chosen.shape[1])
        asked.value, rows = _rows(values, estimates, found.positions.clamp(min=0) if values.table is None else None)
        asked.found, asked.index = addressof(one), addressof(estimates.index)
        held += [at, chosen, raw, one, rows]
        if tail:
            pages = self._buffer("tail", estimates.query.heads, estimates.query.members, estimates.index.pages)
            asked.estimates, asked.tail = addressof(estimates.estimates), pages.data_ptr()
        return estimates.query


def _query(queries: Queries, tokens: int, group_max: bool) -> tuple[c.Query, object]:
    """Members and modifiers, and what holds their numbers; `tokens` are to be looked at for each."""
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


def _rows(
    rows: Rows, estimates: Scanned, at: torch.Tensor | None, head: int | None = None
) -> tuple[c.Rows, torch.Tensor | None]:
    """Where rows are: in the pages or, of cold tokens `at`, gathered from them; of all heads or of one."""
    if at is None:
        assert rows.table is not None, "neither pages nor places"
        return _pages(rows.table, estimates.index.page, head or 0), None
    found = rows.gather(at.long(), None if head is None else torch.tensor([head], device="cpu")).contiguous()
    width = found.shape[2]
    return c.Rows(found.data_ptr(), None, 0, 0, found.shape[1] * width, width, KINDS[found.dtype]), found


def _pages(table: torch.Tensor, ids: int, head: int = 0) -> c.Rows:
    """Rows in pages, of the heads from `head` on."""
    _, heads, size, width = table.shape
    place = table.data_ptr() + head * size * width * table.element_size()
    return c.Rows(place, ids, size, heads, 0, width, KINDS[table.dtype])


def _run(tile: Tile | PagedTile, held: list[object]) -> c.Run:
    """Consecutive tokens, where they lie."""
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


def _copy(tokens: torch.Tensor, window: torch.Tensor, at: int) -> c.Copy:
    """Tokens and where they go; rows of numbers lie together on both sides."""
    batch, heads, count, width = tokens.shape
    size = tokens.element_size()
    there, here = window.stride(), tokens.stride()
    assert here[3] == 1, "numbers apart"
    place = window.data_ptr() + at * width * size
    distances = here[0] * size, here[1] * size, here[2] * size, there[0] * size, there[1] * size
    return c.Copy(tokens.data_ptr(), place, batch, heads, count, width * size, KINDS[tokens.dtype], *distances)
