"""The operations in plain PyTorch: their definition, for any device and dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .arguments import LATE, Found, Masses, PagedTile, PageIndex, Queries, Rows, Tile, marked
from .bound import log_held, missed_share
from .estimates import Estimates
from .ranking import group_scores, top_set
from .softmax import Part, attend_parts, tile_part
from .tail import page_tail, value_shift


class TorchOps:
    """Parameters: sizes of what is computed at once (`Tuning.chunk_bytes`, `Tuning.kept_bytes`)."""

    name = "torch"
    in_place = False

    def __init__(self, chunk_bytes: int, kept_bytes: int) -> None:
        self._chunk_bytes, self._kept_bytes = chunk_bytes, kept_bytes

    def finite(self, *tensors: torch.Tensor) -> list[bool]:
        """Tell whether all numbers are finite, by their sums: one wait for all (`Ops.finite`)."""
        sums: list[float] = torch.stack([tensor.sum() for tensor in tensors]).tolist()
        return [math.isfinite(total) for total in sums]

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
        at = top_set(estimates.scores, candidates)
        raw = self.scores(estimates.queries, keys, at)
        chosen = top_set(group_scores(raw, estimates.index.group), min(selected, candidates))
        first = 3 * candidates // 4
        early = marked(top_set(estimates.scores.gather(1, at), first), candidates, ragged=False)
        count = (~early.gather(1, chosen)).sum(dim=1) - max(0, chosen.shape[1] - first)
        late = estimates.index.transfer.fetch(LATE * count > chosen.shape[1]).tolist()
        return Found(at, raw, chosen, candidates, at.numel(), [head for head, one in enumerate(late) if one])

    def scores(self, queries: Queries, keys: Rows, at: torch.Tensor, heads: torch.Tensor | None = None) -> torch.Tensor:
        """Scores ``[n, M, K]`` of cold tokens ``[n, K]``, whose keys are read, of all heads or of some (SPEC 4.5)."""
        members = queries.members if heads is None else queries.members.index_select(0, heads)
        raw = members.new_empty(*members.shape[:2], at.shape[1])
        step = max(1, self._chunk_bytes // (members.shape[0] * members.shape[2] * members.dtype.itemsize))
        for first in range(0, at.shape[1], step):
            part = slice(first, first + step)
            key = keys.gather(at[:, part].clamp(min=0), heads).to(members.dtype)
            torch.mul(torch.bmm(members, key.transpose(1, 2)), queries.scale, out=raw[:, :, part])
        return raw

    def widen(self, estimates: Estimates, keys: Rows, found: Found, candidates: int) -> Found:
        """Take more candidates for heads that are late (`Ops.widen`)."""
        index = estimates.index
        heads = index.transfer.send(torch.tensor(found.late, device="cpu"))
        at, raw, chosen = (part.index_select(0, heads) for part in found[:3])
        wide = top_set(estimates.scores.index_select(0, heads), candidates)
        known = marked(at, index.tokens).gather(1, wide)
        # As many are new of each head: sorting finds them and, other than a mask, lets no host wait for their number.
        more = wide.gather(1, known.sort(dim=1, stable=True).indices[:, : wide.shape[1] - at.shape[1]])
        order = torch.cat([at, more], dim=1).argsort(dim=1)
        new = torch.cat([raw, self.scores(estimates.queries, keys, more, heads)], dim=2)
        new = new.gather(2, order[:, None].expand_as(new))
        chosen = top_set(group_scores(new, index.group), chosen.shape[1])
        pad = torch.nn.functional.pad
        room = wide.shape[1] - at.shape[1]
        return Found(
            pad(found.at, (0, room), value=-1).index_copy(0, heads, wide),
            pad(found.raw, (0, room), value=-torch.inf).index_copy(0, heads, new),
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
    ) -> Masses:
        """One softmax over everything (`Ops.attend`)."""
        exact = [tile_part(queries, tile) for tile in always if isinstance(tile, Tile)]
        sinks = None if queries.sink_logits is None else queries.sink_logits.flatten(1, 2)
        pages, shift = list[Part](), None
        if retrieved is not None:
            estimates, found, rows = retrieved
            selection, raw, at, missing = self._selection(queries, found, rows)
            exact.append(selection)
            if tail:
                means = estimates.index.records(estimates.index.mean).transpose(0, 1)
                pages = [page_tail(queries, estimates, found, means)]
                if at.shape[1]:  # else every head streams
                    page = (at // estimates.index.page_tokens)[:, :, None].expand(-1, -1, means.shape[2])
                    shift = value_shift(raw, selection.logits, selection.values - means.gather(1, page), missing)
        output, masses = attend_parts(exact, pages, sinks, finite, shift)
        out.copy_(output.view(out.shape))
        return masses

    def take(self, estimates: Estimates, keys: Rows, head: int, known: Found, count: int) -> Found:
        """Take the best tokens of a head whole (`Ops.take`)."""
        at = top_set(estimates.scores[head : head + 1], count)
        more = at[torch.isin(at, known.candidates, invert=True)][None]
        new = self.scores(estimates.queries, keys, more, torch.tensor([head], device=at.device))
        order = torch.cat([known.candidates, more], dim=1)[0].argsort()
        raw = torch.cat([known.scores, new], dim=2)[:, :, order]
        return Found(at, raw, torch.arange(count, device=at.device)[None], count, more.shape[1], [])

    def held(self, queries: Queries, always: Sequence[Tile]) -> torch.Tensor:
        """Sum up what is always attended (`Ops.held`)."""
        return log_held(queries, always)

    def missed(
        self, estimates: Estimates, found: Found, error: torch.Tensor, held: torch.Tensor, head: int | None = None
    ) -> torch.Tensor:
        """Bound what was missed (`Ops.missed`)."""
        heads = slice(None) if head is None else slice(head, head + 1)
        return missed_share(estimates, found, error, held[heads], heads)

    def _selection(
        self, queries: Queries, found: Found, rows: Rows
    ) -> tuple[Part, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Read the selected values; scores ``[H, M, R]``, cold tokens ``[H, R]``, and which only fill up a row."""
        chosen = found.chosen.clamp(min=0) if found.ragged else found.chosen
        at = found.at.gather(1, chosen)
        raw = found.raw.gather(2, chosen[:, None].expand(-1, found.raw.shape[1], -1))
        if not found.ragged:
            return Part(queries.cap(raw), rows.gather(at, None).to(raw.dtype)), raw, at, None
        missing, at = found.chosen < 0, at.clamp_(min=0)
        values = rows.gather(at, None).to(raw.dtype).masked_fill(missing[:, :, None], 0)
        raw = raw.masked_fill(missing[:, None], -torch.inf)
        return Part(queries.cap(raw), values), raw, at, missing
