"""The operations compiled for the CPU (csrc/): rows are read where they lie, in their own dtype.

Sizes and addresses go to C in structures; the numbers stay in tensors that this module holds. A structure holds an
address and no tensor: what it points to is kept in `held` for as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof, byref
from dataclasses import dataclass

import numpy as np
import torch

from . import structures as c
from .addresses import KINDS, always_of, copy_of, found_of, query_of, rows_of
from .arguments import Found, PagedTile, Queries, Rows, Tile
from .library import Library
from .page_index import PageIndex

MOST_CHANNELS = 1 << 15
"""What numbers of 16 bits count."""

REFUSED = "the machine refused memory for a step"


@dataclass
class Scanned:
    """What `estimate` leaves to the operations after it; C's part of it holds until the next estimate."""

    index: c.Index
    query: c.Query
    estimates: c.Estimates
    held: tuple[object, ...]
    slack: torch.Tensor | None = None  # what the missed bound has found out of pages

    def of_head(self, head: int) -> tuple[c.Query, c.Estimates]:
        """Return the same of one head alone."""
        query, found = self.query, self.estimates
        place = query.query + 4 * head * query.members * query.width
        one = c.Query(place, None, 1, query.members, query.width, query.scale, 0.0, query.group_max, query.threads)
        lists = found.name, found.score, None, found.start + 8 * head, found.count + 8 * head
        return one, c.Estimates(found.least, None, None, *lists, None)


class CpuOps:
    """The operations of a library.

    Raises
    ------
    MemoryError
        Each operation where the machine refuses memory for it.
    """

    name = "cpu"
    in_place = True

    def __init__(self, library: Library) -> None:
        self._library = library
        self._buffers: dict[str, torch.Tensor] = {}

    def _buffer(self, name: str, *shape: int) -> torch.Tensor:
        """Return floats that the next use of the name overwrites: fresh memory is slower than the arithmetic."""
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
            copies[number] = copy_of(*pair)
        odd = self._library.append(addressof(copies), len(pairs))
        return [not odd & bit for bit in (1, 2)[: len(pairs)]]

    def estimate(self, index: PageIndex, queries: Queries, most: int) -> Scanned:
        """Estimate every cold token (`Ops.estimate`)."""
        ids, unseen = np.ascontiguousarray(index.ids), index.unseen
        heads, _, _, width = queries.query.shape
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
        query, numbers = query_of(queries, index.tokens, index.group == "max")
        found = c.Estimates(most)
        if self._library.estimate(byref(page), byref(query), byref(found)):
            raise MemoryError(REFUSED)
        return Scanned(page, query, found, (numbers, ids, unseen))

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
        if (keys.table is None or keys.absent is not None) and self._library.best(query, scores, byref(found)):
            raise MemoryError(REFUSED)
        if keys.absent is not None:
            keys.bring(at[:, :candidates])
        rows, _held = rows_of(keys, estimates.index.page, at[:, :candidates] if keys.table is None else None)
        if self._library.select(query, byref(rows), scores, None, byref(found)):
            raise MemoryError(REFUSED)
        return Found(at, raw, chosen, candidates, heads * candidates, [head for head in range(heads) if late[head]])

    def widen(self, estimates: Scanned, keys: Rows, found: Found, candidates: int) -> Found:
        """Take more candidates for heads that are late (`Ops.widen`)."""
        had = found.width
        widened = torch.zeros(found.at.shape[0], dtype=torch.bool, device="cpu")
        found.at[:, had:] = -1
        found.raw[:, :, had:] = -torch.inf
        rows = found.heads
        for head in found.late:
            known = rows[head]._replace(at=rows[head].at.clone(), raw=rows[head].raw.clone())
            self._more(estimates, keys, head, known, rows[head]._replace(width=candidates))
            widened[head] = True
        count = found.keys + len(found.late) * (candidates - had)
        return Found(found.at, found.raw, found.chosen, candidates, count, [], widened)

    def take(self, estimates: Scanned, keys: Rows, head: int, known: Found, count: int) -> Found:
        """Take the best tokens of a head whole (`Ops.take`)."""
        at, chosen = (torch.empty(1, count, dtype=torch.int32, device="cpu") for _ in range(2))
        raw = torch.empty(1, estimates.query.members, count, device="cpu")
        found = Found(at, raw, chosen, count, count - known.width, [])
        self._more(estimates, keys, head, known, found)
        return found

    def _more(self, estimates: Scanned, keys: Rows, head: int, known: Found, found: Found) -> None:
        """Fill in the row of a head, some of whose candidates `known` has."""
        query, scores = estimates.of_head(head)
        had, new, more = found_of(known), found_of(found), None
        if keys.table is None or keys.absent is not None:
            if self._library.best(byref(query), byref(scores), byref(new)):
                raise MemoryError(REFUSED)
            keys.bring(found.candidates, torch.tensor([head], device="cpu"))
        if keys.table is None:
            more = found.candidates[torch.isin(found.candidates, known.candidates, invert=True)][None]
        rows, _held = rows_of(keys, estimates.index.page, more, head)
        if self._library.select(byref(query), byref(rows), byref(scores), byref(had), byref(new)):
            raise MemoryError(REFUSED)

    def held(self, queries: Queries, always: Sequence[Tile | PagedTile]) -> torch.Tensor:
        """Sum up what is always attended (`Ops.held`)."""
        asked, tokens, _held = always_of(queries, always)
        query, _numbers = query_of(queries, tokens, False)
        sums = torch.empty(query.heads, query.members, dtype=torch.float64, device="cpu")
        if self._library.held(byref(query), byref(asked), sums.data_ptr()):
            raise MemoryError(REFUSED)
        return sums

    def missed(
        self, estimates: Scanned, found: Found, error: torch.Tensor, held: torch.Tensor, head: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Bound what was missed (`Ops.missed`)."""
        heads, members, _ = found.raw.shape
        pages = self._buffer("tail", heads, members, estimates.index.pages)
        share, error = torch.empty(3, heads, members, dtype=torch.float64, device="cpu"), error.contiguous()
        slack, taken = estimates.slack, found_of(found)
        if slack is None:
            slack = self._buffer("slack", estimates.query.heads, members, estimates.index.pages, 3)
        asked = c.Missed(
            addressof(estimates.index),
            addressof(estimates.estimates),
            addressof(taken),
            error.data_ptr(),
            held.data_ptr(),
            pages.data_ptr(),
            slack.data_ptr(),
            estimates.slack is not None,
            share.data_ptr(),
            -1 if head is None else head,
        )
        if self._library.missed(byref(estimates.query), byref(asked)):
            raise MemoryError(REFUSED)
        if head is None:
            estimates.slack = slack
        return share[0], share[1], share[2]

    def attend(
        self,
        queries: Queries,
        always: Sequence[Tile | PagedTile],
        finite: bool,
        retrieved: tuple[Scanned, Found, Rows] | None,
        tail: bool,
        out: torch.Tensor,
    ) -> torch.Tensor:
        """Attend by one softmax over everything (`Ops.attend`)."""
        asked, tokens, held = always_of(queries, always)
        asked.value_width, asked.finite = out.shape[2], finite
        if retrieved is None:
            query, numbers = query_of(queries, tokens, False)
            held.append(numbers)
        else:
            query = self._retrieved(asked, retrieved, tail, held)
        return self._attend(query, asked, out)

    def attend_tile(
        self, queries: Queries, tile: Tile | PagedTile, finite: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attend one tile alone (`Ops.attend_tile`)."""
        asked, tokens, _held = always_of(queries, [tile])
        query, _numbers = query_of(queries, tokens, False)
        heads, groups, count, _ = queries.query.shape
        asked.value_width, asked.finite = tile.values.shape[3], finite
        most, total = (torch.empty(heads, groups * count, device="cpu") for _ in range(2))
        asked.most, asked.total = most.data_ptr(), total.data_ptr()
        out = torch.empty(heads * groups, count, asked.value_width, device="cpu")
        self._attend(query, asked, out)
        return out, most, total

    def _attend(self, query: c.Query, asked: c.Attend, out: torch.Tensor) -> torch.Tensor:
        estimated = torch.empty(query.heads, query.members, device="cpu")
        asked.out, asked.out_head, asked.out_kind = out.data_ptr(), out.stride(0), KINDS[out.dtype]
        asked.estimated = estimated.data_ptr()
        if self._library.attend(byref(query), byref(asked)):
            raise MemoryError(REFUSED)
        return estimated

    def _retrieved(
        self, asked: c.Attend, retrieved: tuple[Scanned, Found, Rows], tail: bool, held: list[object]
    ) -> c.Query:
        """Add selection and tail to what is attended."""
        estimates, found, values = retrieved
        if values.absent is not None:
            values.bring(found.positions)
        one = found_of(found)
        asked.value, rows = rows_of(
            values, estimates.index.page, found.positions.clamp(min=0) if values.table is None else None
        )
        asked.found, asked.index = addressof(one), addressof(estimates.index)
        held += [found, one, rows]
        if tail:
            pages = self._buffer("tail", estimates.query.heads, estimates.query.members, estimates.index.pages)
            asked.estimates, asked.tail = addressof(estimates.estimates), pages.data_ptr()
        return estimates.query
