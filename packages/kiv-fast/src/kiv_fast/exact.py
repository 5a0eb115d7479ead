"""Full attention over tiles of tokens, merged by log-sum-exp (SPEC 4.8, 7.1): the memory of a tile, all its work."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .attend import LEAST, Queries, Tile, weigh

QUERY_CHUNK = 256
"""Queries at once where logits are written out."""


class Merge:
    """Running output ``[H, G, TQ, DV]`` and log-mass ``[H, G, TQ]`` of some tokens attended so far."""

    def __init__(self, queries: Queries, value_width: int) -> None:
        shape = queries.query.shape[:3]
        self.mass = queries.query.new_full(shape, -torch.inf)
        self.output = queries.query.new_zeros(*shape, value_width)

    def add(self, output: torch.Tensor, mass: torch.Tensor, first: int, stop: int) -> None:
        """Take in more tokens for the queries ``[first, stop)``."""
        held, sum_ = self.mass[:, :, first:stop], self.output[:, :, first:stop]
        total = torch.logaddexp(held, mass)
        base = total.clamp(min=LEAST)
        sum_.mul_(torch.exp(held - base)[..., None]).addcmul_(output.to(sum_.dtype), torch.exp(mass - base)[..., None])
        held.copy_(total)


def attend_exactly(queries: Queries, tiles: Iterator[Tile], value_width: int, finite: bool) -> torch.Tensor:
    """Output ``[H, M, DV]`` of full attention.

    Parameters
    ----------
    tiles : of all tokens up to the last query's, in any order
    finite : bool
        Whether every value is a number.
    """
    merge = Merge(queries, value_width)
    count = queries.positions.numel()
    first = int(queries.positions[0])
    # Fused attention serves unbroken runs of queries and of valid keys.
    fused = (
        finite
        and queries.softcap is None
        and queries.query.device.type == "cpu"
        and int(queries.positions[-1]) - first == count - 1
        and count > 1
    )
    for tile in tiles:
        if fused and tile.valid is None:
            _fused(merge, queries.query, queries.scale, first, tile)
        else:
            _plain(merge, queries, tile, finite)
    if queries.sink_logits is not None:
        share = torch.exp(merge.mass - torch.logaddexp(merge.mass, queries.sink_logits).clamp(min=LEAST))
        merge.output *= share[..., None]
    return merge.output.flatten(1, 2)


def _fused(merge: Merge, query: torch.Tensor, scale: float, first: int, tile: Tile) -> None:
    """A tile through torch's fused attention; `first` is the position of the first query."""
    count = query.shape[2]
    key, value = tile.key.to(query.dtype), tile.value.to(query.dtype)
    past = min(max(first - tile.first, 0), key.shape[1])
    if past:
        _flash(merge, query, scale, key[:, :past], value[:, :past], 0, count, causal=False)
    if past < key.shape[1]:
        # Tokens of the call itself: their own queries see them causally, later ones all of them, earlier ones none.
        begin = tile.first + past - first
        end = min(begin + key.shape[1] - past, count)
        _flash(merge, query, scale, key[:, past:], value[:, past:], begin, end, causal=True)
        if end < count:
            _flash(merge, query, scale, key[:, past:], value[:, past:], end, count, causal=False)


def _flash(
    merge: Merge,
    query: torch.Tensor,
    scale: float,
    key: torch.Tensor,
    value: torch.Tensor,
    begin: int,
    end: int,
    causal: bool,
) -> None:
    groups, width = query.shape[1], value.shape[2]
    query = query[:, :, begin:end]
    if causal:
        key, value = key[:, : end - begin], value[:, : end - begin]
    # The fused operation wants one width; zeros change neither a product nor a sum.
    wide = max(query.shape[3], width)
    query, key, value = (_widened(t, wide) for t in (query, key, value))
    if causal:
        spread = (t[:, None].expand(-1, groups, -1, -1) for t in (key, value))
        output, mass = _attention(query, *spread, 0.0, True, scale=scale)
    else:
        # Without a mask all queries of a KV head are alike: one head with G times the queries is faster.
        output, mass = _attention(query.flatten(1, 2)[:, None], key[:, None], value[:, None], scale=scale)
        output, mass = output.view(*query.shape[:3], wide), mass.view(query.shape[:3])
    merge.add(output[..., :width], mass, begin, end)


def _widened(tensor: torch.Tensor, width: int) -> torch.Tensor:
    missing = width - tensor.shape[-1]
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _plain(merge: Merge, queries: Queries, tile: Tile, finite: bool) -> None:
    """A tile with its logits written out: soft caps, padding, values that are not finite, single queries."""
    key, value = tile.key.to(queries.query.dtype), tile.value.to(queries.query.dtype)
    heads, groups, count, _ = queries.query.shape
    for begin in range(0, count, QUERY_CHUNK):
        end = min(begin + QUERY_CHUNK, count)
        mine = slice(begin, end)
        part = Queries(queries.query[:, :, mine], queries.positions[mine], queries.scale, queries.softcap, None)
        logits = part.hide(part.logits(key), tile.first, tile.valid)  # [H, G * n, K]
        most = logits.amax(dim=2, keepdim=True).clamp_(min=LEAST)
        weights = torch.exp(logits - most)
        total = weights.sum(dim=2, keepdim=True)
        output = weigh(weights, value, logits, finite)
        output = output / total.clamp(min=torch.finfo(total.dtype).tiny)
        mass = (torch.log(total) + most)[:, :, 0]
        merge.add(output.view(heads, groups, end - begin, -1), mass.view(heads, groups, -1), begin, end)
