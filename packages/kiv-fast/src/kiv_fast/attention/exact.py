"""Full attention over tiles of tokens, merged by log-sum-exp (SPEC 4.8, 7.1): the memory of a tile, all its work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import cast

import torch

from ..ops.arguments import PagedTile, Queries, Tile
from ..ops.protocol import Ops
from ..ops.softmax import LEAST, attend_tile
from .choice import choose
from .fused import Kind, Way

LOST = 2.0**-11
"""Where the unit of a log-sum-exp is larger than this, the fused operation's one number does not tell the sum."""


class Merge:
    """Running output ``[H, G, TQ, DV]`` of some tokens attended so far, and what its softmax divided by.

    The divisor is kept as its largest logit and the sum relative to that, both ``[H, G, TQ]``: their log-sum-exp as one
    number would lose the sum where logits are huge.
    """

    def __init__(self, queries: Queries, value_width: int, chunk: int) -> None:
        self.chunk = chunk  # queries at once where logits are written out
        shape = queries.query.shape[:3]
        self.most = queries.query.new_full(shape, -torch.inf)
        self.total = queries.query.new_zeros(shape)
        self.output = queries.query.new_zeros(*shape, value_width)

    def add(
        self, output: torch.Tensor | None, most: torch.Tensor, total: torch.Tensor | float, first: int, stop: int
    ) -> None:
        """Take in more tokens for the queries ``[first, stop)``; their output is None if their values are zero."""
        mine = (slice(None), slice(None), slice(first, stop))
        held, merged = self.most[mine], self.output[mine]
        highest = torch.maximum(held, most)
        base = highest.clamp(min=LEAST)
        old, new = self.total[mine] * torch.exp(held - base), total * torch.exp(most - base)
        both = old + new
        share = both.clamp(min=torch.finfo(both.dtype).tiny)
        merged.mul_((old / share)[..., None])
        if output is not None:
            merged.addcmul_(output.to(merged.dtype), (new / share)[..., None])
        held.copy_(highest)
        self.total[mine] = both

    def add_part(self, output: torch.Tensor, most: torch.Tensor, total: torch.Tensor, first: int, stop: int) -> None:
        """Take in what `Ops.attend_tile` tells of the queries ``[first, stop)``."""
        shape = *self.most.shape[:2], stop - first
        self.add(output.view(*shape, -1), most.view(shape), total.view(shape), first, stop)

    def finished(self, queries: Queries) -> torch.Tensor:
        """Take in learned sinks at last, and return the output ``[H, M, DV]``."""
        if queries.sink_logits is not None:
            self.add(None, queries.sink_logits, 1.0, 0, self.output.shape[2])
        return self.output.flatten(1, 2)


def attend_by_tile(
    queries: Queries, tiles: Iterable[Tile | PagedTile], value_width: int, finite: bool, ops: Ops
) -> torch.Tensor:
    """Attend fully for few queries, ``[H, M, DV]``, by the operations, for which a tile may be in pages."""
    count = queries.query.shape[2]
    merge, alone = Merge(queries, value_width, count), replace(queries, sink_logits=None)
    for tile in tiles:
        merge.add_part(*ops.attend_tile(alone, tile, finite), 0, count)
    return merge.finished(queries)


def attend_exactly(
    queries: Queries,
    tiles: Callable[[], Iterable[Tile]],
    value_width: int,
    finite: bool,
    chunk: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return output ``[H, M, DV]`` of full attention.

    Parameters
    ----------
    tiles : gives all tokens up to the last query's, in any order, as often as it is asked
    finite : bool
        Whether every value is a number.
    chunk : int
        Queries at once where logits are written out.
    dtype : torch.dtype
        Of keys and queries before these were widened, in which a device attends (`choice`).
    """
    merge, count = Merge(queries, value_width, chunk), queries.query.shape[2]
    fused = _Fused.of(merge, queries, dtype) if finite else None
    for tile in tiles():
        if fused is None or not fused.attend(tile):
            _plain(merge, queries, tile, finite, 0, count)
    if fused is not None and fused.lost():
        merge = Merge(queries, value_width, chunk)
        for tile in tiles():
            _plain(merge, queries, tile, finite, 0, count)
    return merge.finished(queries)


class _Fused:
    """Attends tiles by a fused attention of torch, for unbroken runs of queries and of valid keys.

    On a CPU a tile with huge logits is attended again at once, with the logits written out. A device would have to be
    waited for: there the largest log-sum-exp of all tiles is kept, and looked at when all were attended (`lost`).
    """

    def __init__(self, merge: Merge, queries: Queries, way: Way, dtype: torch.dtype, first: int) -> None:
        self._merge, self._queries, self._way = merge, queries, way
        self._query, self._first = queries.query.to(dtype), first
        self._on_cpu = queries.query.device.type == "cpu"
        self._largest: torch.Tensor | None = None

    @classmethod
    def of(cls, merge: Merge, queries: Queries, dtype: torch.dtype) -> _Fused | None:
        """Return what attends for these queries; None where only logits written out can."""
        query, count = queries.query, queries.query.shape[2]
        on_cpu = query.device.type == "cpu"
        if count == 1:  # a step: little work, which is better in the dtype of computation
            return None
        dtype = query.dtype if on_cpu else dtype
        way = choose(Kind(query.device, dtype, query.shape[3], merge.output.shape[3], queries.softcap)).way
        first = queries.start if queries.among is None else int(queries.positions[0])
        unbroken = queries.among is None or int(queries.positions[-1]) - first == count - 1
        return None if way is None or not unbroken else cls(merge, queries, way, dtype, first)

    def attend(self, tile: Tile) -> bool:
        """Attend a tile, or return False: its valid tokens are no run."""
        if tile.valid is not None:
            if self._on_cpu:
                return False
            at = cast("list[int]", tile.valid.nonzero()[:, 0].tolist())
            if at and at[-1] - at[0] >= len(at):
                return False
            tile = tile.part(at[0], at[-1] + 1) if at else tile.part(0, 0)
        count, length, first = self._query.shape[2], tile.count, self._first
        key, value = tile.key.to(self._query.dtype), tile.value.to(self._query.dtype)
        tile = Tile(key[None], value[None], 0, 0, length, tile.first, None)
        past = min(max(first - tile.first, 0), length)
        if past:
            self._part(tile.part(0, past), 0, count, causal=False)
        if past < length and tile.first + past < first + count:  # the fused operation divides by the number of queries
            # Tokens of the call itself: their own queries see them causally, later ones all of them, earlier ones none.
            begin = tile.first + past - first
            end = min(begin + length - past, count)
            self._part(tile.part(past, past + end - begin), begin, end, causal=True)
            if end < count:
                self._part(tile.part(past, length), end, count, causal=False)
        return True

    def _part(self, tile: Tile, begin: int, end: int, causal: bool) -> None:
        """Answer the queries ``[begin, end)``, which see all of a tile or, if `causal`, are its own."""
        query, scale, softcap = self._query[:, :, begin:end], self._queries.scale, self._queries.softcap
        if causal:
            key, value = (t[:, None].expand(-1, query.shape[1], -1, -1) for t in (tile.key, tile.value))
            output, mass = self._way(query, key, value, True, scale, softcap)
        else:
            # Without a mask all queries of a KV head are alike: one head with G times the queries is faster.
            members = query.flatten(1, 2)[:, None]
            output, mass = self._way(members, tile.key[:, None], tile.value[:, None], False, scale, softcap)
            output, mass = output.view(*query.shape[:3], -1), mass.view(query.shape[:3])
        largest = mass.abs().amax()
        if not self._on_cpu:
            self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)
        elif not _tells(largest):
            _plain(self._merge, self._queries, tile, True, begin, end)
            return
        self._merge.add(output, mass, 1.0, begin, end)

    def lost(self) -> bool:
        """Tell whether a log-sum-exp of a device lost the sum; on a CPU none that counts did."""
        return self._largest is not None and not _tells(self._largest)


def _tells(largest: torch.Tensor) -> bool:
    """Tell whether log-sum-exps of at most this size tell their sums; waits for the device."""
    return bool(largest * torch.finfo(largest.dtype).eps < LOST)


def _plain(merge: Merge, queries: Queries, tile: Tile, finite: bool, start: int, stop: int) -> None:
    """Answer the queries ``[start, stop)`` from a tile with the logits written out.

    For padding within a tile, values that are not finite, huge logits, and what no fused attention can do.
    """
    dtype = queries.query.dtype
    whole = Tile(tile.key.to(dtype)[None], tile.value.to(dtype)[None], 0, 0, tile.count, tile.first, tile.valid)
    for begin in range(start, stop, merge.chunk):
        end = min(begin + merge.chunk, stop)
        merge.add_part(*attend_tile(queries.part(begin, end), whole, finite), begin, end)
