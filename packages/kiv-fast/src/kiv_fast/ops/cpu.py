"""The operations compiled for the CPU: rows are read where they lie, in their own dtype (csrc/).

Sizes and addresses go to C in structures; the numbers stay in tensors that this module holds.
"""

from __future__ import annotations

import ctypes
from ctypes import addressof, byref
from dataclasses import dataclass

import numpy as np
import torch

from ..memory.scratch import Scratch
from . import library as c
from .arguments import Attended, Found, PagedTile, PageIndex, Queries, Rows, Tile

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MOST_CHANNELS = 1 << 15
"""What numbers of 16 bits count."""

BLOCK_TOKENS = 32
PAGES_AT_ONCE = 4


@dataclass
class Scanned:
    """What `estimate` leaves to the operations after it: structures, and what keeps their addresses alive."""

    index: c.Index
    query: c.Query
    estimates: c.Estimates
    queries: Queries
    pages: PageIndex
    held: tuple[object, ...]

    def of_head(self, head: int) -> tuple[c.Query, c.Estimates]:
        """The same of one head alone."""
        query, e, row = self.query, self.estimates, self.pages.tokens
        place = query.query + 4 * head * query.members * query.width
        one = c.Query(place, None, 1, query.members, query.width, query.scale, 0.0, query.group_max, query.threads)
        lists = e.name + 4 * head * row, e.score + 4 * head * row, e.count + 8 * head
        return one, c.Estimates(None, None, None, *lists, e.least)


class CpuOps:
    """The operations of a `Library`.

    Parameters
    ----------
    library : Library
    scratch : Scratch
        Of the pool.
    kept_bytes : int
        Estimates of a block that take no more are kept until the block is over.
    """

    name = "cpu"
    in_place = True

    def __init__(self, library: c.Library, scratch: Scratch, kept_bytes: int) -> None:
        self._library, self._scratch, self._kept_bytes = library, scratch, kept_bytes

    def estimate(self, index: PageIndex, queries: Queries, most: int) -> Scanned:
        """Estimate every cold token (`Ops.estimate`)."""
        members = queries.members.contiguous()
        heads, count, width = members.shape
        tables = index.codes, index.channels, index.step, index.base, index.mean
        unseen = index.unseen
        ids = np.ascontiguousarray(index.ids)
        page = c.Index(
            *(table.tensor.data_ptr() for table in tables),
            ids.ctypes.data,
            None if unseen is None else unseen.data_ptr(),
            index.pages,
            heads,
            index.page_tokens,
            index.channels.tensor.shape[2] // 2,
            width,
            index.mean.tensor.shape[2],
        )
        query = self._query(queries, members, index.group == "max")
        blocks = index.pages * -(-index.page_tokens // BLOCK_TOKENS)
        parts = -(-index.pages // PAGES_AT_ONCE)
        sums = self._floats("block sums", 2 * heads * count * blocks)
        names = self._floats("candidates' names", 2 * heads * index.tokens)
        counts = self._scratch.take("counts", (heads * parts,), torch.int64, members.device)
        each = heads * count * index.tokens
        kept = self._floats("estimates", each) if 4 * each <= self._kept_bytes else None
        estimates = c.Estimates(
            sums.data_ptr(),
            sums.data_ptr() + 4 * heads * count * blocks,
            None if kept is None else kept.data_ptr(),
            names.data_ptr(),
            names.data_ptr() + 4 * heads * index.tokens,
            counts.data_ptr(),
            most,
        )
        _done(self._library.estimate(byref(page), byref(query), byref(estimates)))
        return Scanned(page, query, estimates, queries, index, (members, ids, sums, names, counts, kept, unseen))

    def _floats(self, name: str, count: int) -> torch.Tensor:
        return self._scratch.take(name, (count,), torch.float32, torch.device("cpu"))

    def _query(self, queries: Queries, members: torch.Tensor, group_max: bool) -> c.Query:
        heads, count, width = members.shape
        sinks = queries.sink_logits
        if sinks is not None:
            sinks = sinks.flatten(1, 2).contiguous()
        query = c.Query(
            members.data_ptr(),
            None if sinks is None else sinks.data_ptr(),
            heads,
            count,
            width,
            queries.scale,
            queries.softcap or 0.0,
            group_max,
            torch.get_num_threads(),
        )
        query.held = members, sinks  # pyright: ignore[reportAttributeAccessIssue]
        return query

    def select(self, estimates: Scanned, keys: Rows, candidates: int, selected: int) -> Found:
        """Choose candidates and select among them (`Ops.select`)."""
        heads, members = estimates.query.heads, estimates.query.members
        room = min(2 * candidates, estimates.estimates.least)
        at = torch.empty(heads, room, dtype=torch.int32)
        chosen = torch.empty(heads, min(selected, candidates), dtype=torch.int32)
        raw = self._scratch.take("scores", (heads, members, room), torch.float32, at.device)
        late = (c.Int * heads)()
        found = c.Found(
            at.data_ptr(), raw.data_ptr(), chosen.data_ptr(), addressof(late), room, candidates, chosen.shape[1]
        )
        row = estimates.pages.tokens
        _done(self._library.best(byref(estimates.query), byref(estimates.estimates), row, candidates, found.at, room))
        rows = self._rows(keys, estimates, at[:, :candidates] if keys.table is None else None)
        _done(
            self._library.select(
                byref(estimates.query), byref(rows), byref(estimates.estimates), row, None, byref(found)
            )
        )
        return Found(at, raw, chosen, candidates, heads * candidates, [head for head in range(heads) if late[head]])

    def _rows(self, rows: Rows, estimates: Scanned, at: torch.Tensor | None, head: int | None = None) -> c.Rows:
        """Where rows are: in the pages, or gathered from them, of all heads or of one."""
        index = estimates.index
        if at is None:
            assert rows.table is not None, "neither pages nor places"
            return self._pages(rows.table, index.page, head or 0)
        found = rows.gather(at.long(), None if head is None else torch.tensor([head])).contiguous()
        width = found.shape[2]
        one = c.Rows(found.data_ptr(), None, 0, 0, found.shape[1] * width, width, KINDS[found.dtype])
        one.held = found  # pyright: ignore[reportAttributeAccessIssue]
        return one

    @staticmethod
    def _pages(table: torch.Tensor, ids: int, head: int = 0) -> c.Rows:
        """Rows in pages, of the heads from `head` on."""
        _, heads, size, width = table.shape
        place = table.data_ptr() + head * size * width * table.element_size()
        return c.Rows(place, ids, size, heads, 0, width, KINDS[table.dtype])

    def widen(self, estimates: Scanned, keys: Rows, found: Found, candidates: int) -> Found:
        """Take more candidates for heads that are late (`Ops.widen`)."""
        heads, room = found.at.shape
        had, selected = found.width, found.chosen.shape[1]
        widened = torch.zeros(heads, dtype=torch.bool)
        found.at[:, had:] = -1
        found.raw[:, :, had:] = -torch.inf
        for head in found.late:
            query, of_head = estimates.of_head(head)
            known_at, known_raw = found.at[head].clone(), found.raw[head].clone()
            known = c.Found(known_at.data_ptr(), known_raw.data_ptr(), None, None, room, had, selected)
            late = c.Int(0)
            new = c.Found(
                found.at[head].data_ptr(),
                found.raw[head].data_ptr(),
                found.chosen[head].data_ptr(),
                addressof(late),
                room,
                candidates,
                selected,
            )
            row = estimates.pages.tokens
            _done(self._library.best(byref(query), byref(of_head), row, candidates, new.at, room))
            more = None
            if keys.table is None:
                at = found.at[head, :candidates]
                more = at[torch.isin(at, known_at[:had], assume_unique=True, invert=True)][None]
            rows = self._rows(keys, estimates, more, head)
            _done(self._library.select(byref(query), byref(rows), None, row, byref(known), byref(new)))
            widened[head] = True
        count = found.keys + len(found.late) * (candidates - had)
        return Found(found.at, found.raw, found.chosen, candidates, count, [], widened)

    def attend(
        self,
        queries: Queries,
        always: list[Tile | PagedTile],
        finite: bool,
        retrieved: tuple[Scanned, Found, Rows] | None,
        tail: bool,
        out: torch.Tensor,
    ) -> Attended:
        """One softmax over everything (`Ops.attend`)."""
        held: list[object] = []
        runs = (c.Run * max(1, len(always)))(*(self._run(tile, held) for tile in always))
        width = always[0].values.shape[3] if always else retrieved[0].index.value_width
        count = queries.query.shape[2]
        places = queries.positions if count > 1 or queries.among is not None else (c.Long * 1)(queries.start)
        position = places.data_ptr() if isinstance(places, torch.Tensor) else addressof(places)
        asked = c.Attend(addressof(runs), len(always), position, count, width, finite=finite)
        if retrieved is None:
            members = queries.members.contiguous()
            query = self._query(queries, members, False)
        else:
            query = self._retrieved(asked, retrieved, tail, held)
        masses = torch.empty(2, query.heads, query.members)
        asked.out, asked.out_head, asked.out_kind = out.data_ptr(), out.stride(0), KINDS[out.dtype]
        asked.exact = masses.data_ptr()
        asked.estimated = asked.exact + 4 * query.heads * query.members
        _done(self._library.attend(byref(query), byref(asked)))
        return Attended(*masses.unbind())

    def _run(self, tile: Tile | PagedTile, held: list[object]) -> c.Run:
        valid = tile.valid
        if valid is not None:
            held.append(valid := valid.contiguous())
        if isinstance(tile, PagedTile):
            ids = np.ascontiguousarray(tile.ids)
            held.append(ids)
            parts = [
                c.Rows(
                    part.data_ptr(), ids.ctypes.data, part.shape[2], part.shape[1], 0, part.shape[3], KINDS[part.dtype]
                )
                for part in (tile.keys, tile.values)
            ]
            return c.Run(*parts, tile.first, len(ids) * tile.keys.shape[2], None if valid is None else valid.data_ptr())
        parts = []
        for part in (tile.keys, tile.values):
            if part.stride(3) != 1 or part.stride(2) != part.shape[3]:
                part = part.contiguous()
                held.append(part)
            place = part.data_ptr() + (tile.row * part.stride(0) + tile.start * part.stride(2)) * part.element_size()
            parts.append(c.Rows(place, None, 0, 0, part.stride(1), part.shape[3], KINDS[part.dtype]))
        return c.Run(*parts, tile.first, tile.count, None if valid is None else valid.data_ptr())

    def _retrieved(
        self, asked: c.Attend, retrieved: tuple[Scanned, Found, Rows], tail: bool, held: list[object]
    ) -> c.Query:
        """Add selection and tail to what is attended."""
        estimates, found, values = retrieved
        heads, members = estimates.query.heads, estimates.query.members
        one = c.Found(
            found.at.data_ptr(),
            found.raw.data_ptr(),
            found.chosen.data_ptr(),
            None,
            found.at.shape[1],
            found.width,
            found.chosen.shape[1],
        )
        at = None
        if values.table is None:
            at = found.positions.clamp(min=0)
        asked.value = self._rows(values, estimates, at)
        asked.found, asked.index = addressof(one), addressof(estimates.index)
        held += [one, asked.value]
        if tail:
            pages = self._floats("tail", heads * members * estimates.index.pages)
            asked.tail = pages.data_ptr()
            _done(
                self._library.tail(
                    byref(estimates.index), byref(estimates.query), byref(estimates.estimates), byref(one), asked.tail
                )
            )
        return estimates.query


def _done(status: int) -> None:
    if status:
        raise MemoryError("the machine refused memory for a step")


__all__ = ["CpuOps", "ctypes"]
