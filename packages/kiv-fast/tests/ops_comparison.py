"""What compiled operations find for a block, compared with what those in PyTorch find."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import torch
from kiv_fast.ops import CpuOps, TorchOps, library
from kiv_fast.ops.arguments import Queries, Rows
from kiv_fast.ops.ranking import group_scores

if TYPE_CHECKING:
    from kiv_fast.ops.arguments import Found
    from kiv_fast.ops.cpu import Scanned
    from kiv_fast.ops.estimates import Chunk, Estimates
    from kiv_fast.retrieval.candidates import View
    from kiv_reference.config import Group
    from random_blocks import Block

PLAIN = TorchOps(1 << 20, 1 << 24)
ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}
"""Of outputs, in units of the largest value."""


def ops_at(level: int) -> CpuOps:
    """Return the compiled operations with the instructions of `level`."""
    return CpuOps(library.Library(library.library_path(), level))


class Wide:
    """Estimates and mean values of float32 in float64: what is computed from them has no rounding to speak of."""

    def __init__(self, estimates: Estimates) -> None:
        index = estimates.index
        mean = index.mean.tensor[: index.ids.max() + 1].double()
        self.index = replace(index, mean=SimpleNamespace(tensor=mean, rows=mean.view(-1, mean.shape[2])))
        self.chunks = estimates.chunks
        self._parts = {chunk: estimates.of(chunk).double() for chunk in self.chunks}

    def of(self, chunk: Chunk) -> torch.Tensor:
        return self._parts[chunk]


def rows(view: View, in_place: bool) -> tuple[Rows, ...]:
    """Return keys and values of the cold tokens, as they are handed to the compiled operations."""
    cold = view.cold
    return tuple(
        cold.rows(view.row, values)._replace(table=cold.arena.table(values) if in_place else None)
        for values in (False, True)
    )


def best(scores: torch.Tensor, chosen: torch.Tensor, exact: bool) -> None:
    """Check that `chosen` int [H, n] are the best of [H, I], ascending; up to rounding unless `exact`."""
    chosen = chosen.long()
    assert bool((chosen[:, 1:] > chosen[:, :-1]).all())
    if exact:
        right = scores.sort(dim=1, descending=True, stable=True).indices[:, : chosen.shape[1]].sort(dim=1).values
        assert torch.equal(chosen, right)
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)
    least = scores.masked_fill(~kept, torch.inf).amin(dim=1)
    most = scores.masked_fill(kept, -torch.inf).amax(dim=1)
    assert bool((least > -torch.inf).all()), "an invalid token"
    assert bool((most - least <= 1e-4 * (1 + least.abs())).all())


def ranked(scores: torch.Tensor, group: Group) -> torch.Tensor:
    """Group scores, whose differences are those of the scores, if they are not too small for float32."""
    return scores if group == "max" else scores.log().clamp_(min=-80.0)


def check(level: int, in_place: bool, block: Block, exact: bool = False) -> None:
    """Compare each operation's result with PyTorch's, given the same."""
    _store, view, queries, candidates, selected = block
    ops, group = ops_at(level), view.index.group
    keys, values = rows(view, in_place)
    plain = PLAIN.estimate(view.index, queries, view.tokens)
    scores = ranked(plain.scores, group)
    scores = scores if view.index.unseen is None else scores.masked_fill(view.index.unseen, -torch.inf)
    learned = None if queries.sink_logits is None else queries.sink_logits.double()
    double = replace(queries, query=queries.query.double(), sink_logits=learned)
    scanned = ops.estimate(view.index, queries, min(2 * candidates, view.tokens))
    found = ops.select(scanned, keys, candidates, selected)
    late, wide = list(range(found.at.shape[0]))[::2], min(2 * candidates, view.tokens)
    for widened in (False, True):
        if widened:
            found = ops.widen(scanned, keys, found._replace(late=late), wide)
        taken = list(range(found.at.shape[0])) if not widened else late
        for head in taken:
            best(scores[head : head + 1], found.candidates[head : head + 1], exact)
        at, none = found.candidates.long(), found.candidates < 0
        raw = PLAIN.scores(double, view.cold.rows(view.row, False), view.cold.places(view.row, at.clamp(min=0)))
        raw = raw.masked_fill(none[:, None], -torch.inf)
        torch.testing.assert_close(found.scores.double(), raw, rtol=1e-5, atol=1e-5)
        best(ranked(group_scores(raw, group), group), found.chosen, exact)
        if not widened:
            mine = PLAIN.select(plain, view.cold.rows(view.row, False), candidates, selected)
            assert found.keys == mine.keys
            assert not exact or found.late == mine.late
        wide_estimates = cast("Estimates", Wide(plain))
        attended(ops, (scanned, found, values), (wide_estimates, double, raw), view, queries)
        bounded(ops, scanned, keys, found, plain, scores, view)
    assert found.keys == candidates * found.at.shape[0] + len(late) * (wide - candidates)


def attended(
    ops: CpuOps,
    retrieved: tuple[Scanned, Found, Rows],
    exactly: tuple[Estimates, Queries, torch.Tensor],
    view: View,
    queries: Queries,
) -> None:
    """Check outputs and masses with a tail and without against those in float64."""
    (scanned, found, values), (estimates, double, raw) = retrieved, exactly
    exact = found._replace(at=found.candidates.long(), raw=raw, chosen=found.chosen.long())
    finite = view.finite and view.row.finite >= view.index.pages
    heads, groups, count, _ = queries.query.shape
    for tail in (False, True):
        out = torch.empty(heads * groups, count, view.cold.shape.value_width, dtype=view.cold.shape.dtype)
        right = out.double()
        mine = ops.attend(queries, view.always, finite, (scanned, found, values), tail, out)
        plain = estimates, exact, view.cold.rows(view.row, True)
        other = PLAIN.attend(double, view.always, finite, plain, tail, right)
        close = ROUNDING[out.dtype] * (1 + float(right.nan_to_num(0.0, 0.0, 0.0).abs().max()))
        torch.testing.assert_close(out.double(), right, rtol=0, atol=close, equal_nan=True)
        torch.testing.assert_close(mine.double(), other, rtol=0, atol=2e-5)


def bounded(
    ops: CpuOps, scanned: Scanned, keys: Rows, found: Found, plain: Estimates, scores: torch.Tensor, view: View
) -> None:
    """Check what is held and the missed bound, and tokens of one head that are taken whole."""
    assert view.cold.index is not None
    queries, error = plain.queries, view.index.records(view.cold.index.error)
    held = ops.held(queries, view.always)
    torch.testing.assert_close(held, PLAIN.held(queries, view.always), rtol=1e-4, atol=1e-3)
    missed = torch.stack(ops.missed(scanned, found, error, held))
    right = torch.stack(PLAIN.missed(plain, found, error, held))
    torch.testing.assert_close(missed[:2], right[:2], rtol=2e-3, atol=1e-30)
    for head, row in enumerate(found.heads):
        assert torch.equal(torch.stack(ops.missed(scanned, row, error, held, head))[:, 0], missed[:, head])
        count = min(found.width + 3, scanned.estimates.least)
        known = row._replace(width=int((row.candidates >= 0).sum()))
        taken = ops.take(scanned, keys, head, known, count)
        other = PLAIN.take(plain, view.cold.rows(view.row, False), head, known._replace(width=0), count)
        most = ops.take(scanned, keys, head, known, max(found.width, scanned.estimates.least))
        assert bool((missed[2, head] <= ops.missed(scanned, most, error, held, head)[0]).all())
        at = taken.candidates.long()
        places = view.cold.places(view.row, at, torch.tensor([head]))
        raw = PLAIN.scores(queries, view.cold.rows(view.row, False), places, torch.tensor([head]))
        torch.testing.assert_close(taken.scores, raw, rtol=1e-4, atol=1e-4)
        best(scores[head : head + 1], taken.candidates, False)
        assert torch.equal(taken.chosen[0], torch.arange(count, dtype=torch.int32))
        assert other.keys == taken.keys + known.width == count
