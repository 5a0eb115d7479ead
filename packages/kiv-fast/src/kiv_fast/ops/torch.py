"""The operations in plain PyTorch: their definition, for any device and dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch

from .arguments import LATE, Found, PagedTile, Queries, Rows, Tile, marked
from .bound import log_held, missed_share
from .estimates import Estimates, joined, pieces
from .page_index import PageIndex
from .ranking import group_scores, top_set, top_sets
from .softmax import attend_all, attend_tile, tile_logits
from .tail import WEIGHT, page_tail, value_shift


class TorchOps:
    """Parameters: sizes of what is computed at once (`Tuning.chunk_bytes`, `Tuning.kept_bytes`)."""

    name = "torch"
    in_place = False

    def __init__(self, chunk_bytes: int, kept_bytes: int) -> None:
        self._chunk_bytes, self._kept_bytes = chunk_bytes, kept_bytes

    def finite(self, *tensors: torch.Tensor) -> list[bool]:
        """Tell whether all numbers are finite, by their sums: one wait for all (`Ops.finite`)."""
        sums = [tensor.sum() for tensor in tensors]
        if len(sums) == 1:
            return [math.isfinite(cast("float", sums[0].tolist()))]
        return [math.isfinite(total) for total in cast("list[float]", torch.stack(sums).tolist())]

    def append(self, pairs: tuple[tuple[torch.Tensor, torch.Tensor, int], ...]) -> list[bool]:
        """Write tokens into windows (`Ops.append`)."""
        for tokens, window, at in pairs:
            window[:, :, at : at + tokens.shape[2]] = tokens
        return self.finite(*[tokens for tokens, _, _ in pairs])

    def estimate(self, index: PageIndex, queries: Queries, most: int) -> Estimates:
        """Estimate every cold token (`Ops.estimate`)."""
        return Estimates(index, queries, self._chunk_bytes, self._kept_bytes)

    def select(self, estimates: Estimates, keys: Rows, candidates: int, selected: int) -> Found:
        """Choose candidates and select among them (`Ops.select`)."""
        first, most = 3 * candidates // 4, min(selected, candidates)
        at, early = top_sets(estimates.scores, candidates, first)
        places = keys.places(at, None)
        raw = self.scores(estimates.queries, keys, places)
        chosen = top_set(group_scores(raw, estimates.index.group), most)
        counts = cast("list[int]", estimates.index.transfer.fetch(early.gather(1, chosen).sum(dim=1)).tolist())
        late = [head for head, count in enumerate(counts) if LATE * (min(most, first) - count) > most]
        return Found(at, raw, chosen, candidates, at.numel(), late, places=places)

    def scores(
        self, queries: Queries, keys: Rows, places: torch.Tensor, heads: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Score the keys at places ``[n, K]``, ``[n, M, K]``, which are read, of all heads or of some (SPEC 4.5)."""
        members = queries.scaled if heads is None else queries.scaled.index_select(0, heads)
        step = max(1, self._chunk_bytes // (members.shape[0] * members.shape[2] * members.dtype.itemsize))
        read = (keys.read(part).to(members.dtype) for part in pieces(places, step, 1))
        return joined([torch.bmm(members, key.transpose(1, 2)) for key in read], 2)

    def widen(self, estimates: Estimates, keys: Rows, found: Found, candidates: int) -> Found:
        """Take more candidates for heads that are late (`Ops.widen`)."""
        index = estimates.index
        heads = index.transfer.send(torch.tensor(found.late, device="cpu"))
        at = found.at.index_select(0, heads)
        wide = top_set(estimates.scores.index_select(0, heads), candidates)
        known = marked(at, index.tokens).gather(1, wide)
        # As many are new of each head: sorting finds them and, other than a mask, lets no host wait for their number.
        more = wide.gather(1, known.sort(dim=1, stable=True).indices[:, : wide.shape[1] - at.shape[1]])
        order = torch.cat([at, more], dim=1).argsort(dim=1)
        new = self.scores(estimates.queries, keys, keys.places(more, heads), heads)
        new = torch.cat([found.raw.index_select(0, heads), new], dim=2)
        new = new.gather(2, order[:, None].expand_as(new))
        chosen = top_set(group_scores(new, index.group), found.chosen.shape[1])
        pad = torch.nn.functional.pad
        room = wide.shape[1] - at.shape[1]
        return Found(
            pad(found.at, (0, room), value=-1).index_copy_(0, heads, wide),
            pad(found.raw, (0, room), value=-torch.inf).index_copy_(0, heads, new),
            found.chosen.index_copy(0, heads, chosen),
            candidates,
            found.keys + more.numel(),
            [],
            torch.zeros(found.at.shape[0], dtype=torch.bool, device=heads.device).index_fill(0, heads, True),
        )

    def attend(
        self,
        queries: Queries,
        always: Sequence[Tile | PagedTile],
        finite: bool,
        retrieved: tuple[Estimates, Found, Rows] | None,
        tail: bool,
        out: torch.Tensor,
    ) -> torch.Tensor:
        """Attend by one softmax over everything (`Ops.attend`)."""
        tiles = [tile for tile in always if isinstance(tile, Tile)]
        logits = [tile_logits(queries, tiles)] if tiles else []
        values = [tile.value for tile in tiles]
        if queries.blocks > 1 and tiles:
            values = [joined(values, 1)]
        shift, pages = None, 0
        if retrieved is not None:
            estimates, found, rows = retrieved
            chosen = found.selection(rows)
            logits.append(queries.cap(chosen.raw))
            values.append(rows.read(chosen.places))
            if tail:
                if chosen.places.shape[1]:  # else every head streams
                    shift = value_shift(chosen, logits[-1], values[-1], estimates.index)
                logits.append(page_tail(queries, estimates, found, chosen))
                values.append(estimates.index.means)
                pages = estimates.index.pages
        padded = any(tile.valid is not None for tile in tiles)
        output, weights = attend_all(queries, logits, values, padded, finite)
        estimated = weights[:, :, weights.shape[2] - pages :].sum(dim=2)
        if shift is not None:
            # Without a pseudo-token nothing is moved, by whatever number (SPEC 2.5).
            shift = shift if finite else shift.masked_fill((estimated == 0)[:, :, None], 0)
            output.addcmul_(estimated[:, :, None], shift, value=WEIGHT)
        out.copy_(output.view(out.shape))
        return estimated

    def attend_tile(
        self, queries: Queries, tile: Tile | PagedTile, finite: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attend one tile alone (`Ops.attend_tile`)."""
        assert isinstance(tile, Tile), "pages that torch cannot read where they lie"
        return attend_tile(queries, tile, finite)

    def take(self, estimates: Estimates, keys: Rows, head: int, known: Found, count: int) -> Found:
        """Take the best tokens of a head whole (`Ops.take`)."""
        at = top_set(estimates.scores[head : head + 1], count)
        more = at[torch.isin(at, known.candidates, invert=True)][None]
        heads = torch.tensor([head], device=at.device)
        new = self.scores(estimates.queries, keys, keys.places(more, heads), heads)
        order = torch.cat([known.candidates, more], dim=1)[0].argsort()
        raw = torch.cat([known.scores, new], dim=2)[:, :, order]
        return Found(at, raw, torch.arange(count, device=at.device)[None], count, more.shape[1], [])

    def held(self, queries: Queries, always: Sequence[Tile]) -> torch.Tensor:
        """Sum up what is always attended (`Ops.held`)."""
        return log_held(queries, always)

    def missed(
        self, estimates: Estimates, found: Found, error: torch.Tensor, held: torch.Tensor, head: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Bound what was missed (`Ops.missed`)."""
        heads = slice(None) if head is None else slice(head, head + 1)
        bounds = missed_share(estimates, found, error, held[heads], heads)
        return *bounds, torch.zeros_like(bounds[0])
