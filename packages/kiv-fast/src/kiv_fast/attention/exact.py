"""Full attention over tiles of tokens, merged by log-sum-exp (SPEC 4.8, 7.1): the memory of a tile, all its work."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from ..ops.arguments import PagedTile, Queries, Tile
from ..ops.protocol import Ops
from ..ops.softmax import LEAST, attend_tile

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


def attend_exactly(queries: Queries, tiles: Iterable[Tile], value_width: int, finite: bool, chunk: int) -> torch.Tensor:
    """Return output ``[H, M, DV]`` of full attention.

    Parameters
    ----------
    tiles : of all tokens up to the last query's, in any order
    finite : bool
        Whether every value is a number.
    chunk : int
        Queries at once where logits are written out.
    """
    merge = Merge(queries, value_width, chunk)
    count = queries.positions.numel()
    # Fused attention serves unbroken runs of queries and of valid keys.
    fused = finite and queries.softcap is None and queries.query.device.type == "cpu" and count > 1
    fused = fused and int(queries.positions[-1] - queries.positions[0]) == count - 1
    for tile in tiles:
        if fused and tile.valid is None:
            _fused(merge, queries, int(queries.positions[0]), tile)
        else:
            _plain(merge, queries, tile, finite, 0, count)
    return merge.finished(queries)


def _fused(merge: Merge, queries: Queries, first: int, tile: Tile) -> None:
    """Attend a tile by torch's fused attention; `first` is the position of the first query."""
    count, length = queries.positions.numel(), tile.count
    key, value = tile.key.to(queries.query.dtype), tile.value.to(queries.query.dtype)
    tile = Tile(key[None], value[None], 0, 0, length, tile.first, tile.valid)
    past = min(max(first - tile.first, 0), length)
    if past:
        _flash(merge, queries, tile.part(0, past), 0, count, causal=False)
    if past < length and tile.first + past < first + count:  # the fused operation divides by the number of queries
        # Tokens of the call itself: their own queries see them causally, later ones all of them, earlier ones none.
        begin = tile.first + past - first
        end = min(begin + length - past, count)
        _flash(merge, queries, tile.part(past, past + end - begin), begin, end, causal=True)
        if end < count:
            _flash(merge, queries, tile.part(past, length), end, count, causal=False)


def _flash(merge: Merge, queries: Queries, tile: Tile, begin: int, end: int, causal: bool) -> None:
    """Answer the queries ``[begin, end)``, which see all of a tile or, if `causal`, are its own."""
    query, groups, width = queries.query[:, :, begin:end], queries.query.shape[1], tile.values.shape[3]
    # The fused operation wants one width; zeros change neither a product nor a sum.
    wide = max(query.shape[3], width)
    query, key, value = (_widened(t, wide) for t in (query, tile.key, tile.value))
    if causal:
        spread = (t[:, None].expand(-1, groups, -1, -1) for t in (key, value))
        output, mass = _attention(query, *spread, 0.0, True, scale=queries.scale)
    else:
        # Without a mask all queries of a KV head are alike: one head with G times the queries is faster.
        output, mass = _attention(query.flatten(1, 2)[:, None], key[:, None], value[:, None], scale=queries.scale)
        output, mass = output.view(*query.shape[:3], wide), mass.view(query.shape[:3])
    if bool(mass.abs().amax() * torch.finfo(mass.dtype).eps < LOST):
        merge.add(output[..., :width], mass, 1.0, begin, end)
    else:
        _plain(merge, queries, tile, True, begin, end)


def _widened(tensor: torch.Tensor, width: int) -> torch.Tensor:
    missing = width - tensor.shape[-1]
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _plain(merge: Merge, queries: Queries, tile: Tile, finite: bool, start: int, stop: int) -> None:
    """Answer the queries ``[start, stop)`` from a tile with the logits written out.

    For soft caps, padding, values that are not finite, single queries, huge logits.
    """
    dtype = queries.query.dtype
    whole = Tile(tile.key.to(dtype)[None], tile.value.to(dtype)[None], 0, 0, tile.count, tile.first, tile.valid)
    for begin in range(start, stop, merge.chunk):
        end = min(begin + merge.chunk, stop)
        merge.add_part(*attend_tile(queries.part(begin, end), whole, finite), begin, end)
