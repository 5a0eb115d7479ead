"""The comparisons: state, masses and output of a target against the second oracle.

Retrieval is compared first (`checks_retrieval`). Then the oracle takes over the target's candidates and selection, and
masses and outputs are compared.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .allowed_error import Precision, allowed_error, token_errors, with_shift
from .checks_retrieval import check_retrieval
from .claims import at_query
from .low import LowPrecision
from .oracle import answer
from .oracle_block import HeadBlock, Retrieved, masses

if TYPE_CHECKING:
    import torch
    from kiv_reference.contract import AttendReport, BlockReport

    from .failure import Scene
    from .oracle_store import OracleStore


def check_state(scene: Scene, oracle: OracleStore) -> None:
    """Check length, validity and the partition of the next call."""
    store = scene.store
    claim = f"{scene.name}.length == {oracle.length}"
    scene.require(store.length == oracle.length, "9.1", "wrong length", claim, got=store.length, expected=oracle.length)
    flags = [] if oracle.length == 0 or store.valid is None else store.valid.tolist()
    padded = any(not all(row) for row in oracle.valid)
    scene.require((not padded and not flags) or flags == oracle.valid, "2.4", "wrong validity", got=flags)
    got, (sinks, hot, cold) = store.tokens(), oracle.parts()
    same = (got.sinks, got.hot, got.cold_ram + got.cold_disk) == (sinks, hot, cold)
    claim = f"({scene.name}.tokens().sinks, {scene.name}.tokens().hot) == ({sinks}, {hot})"
    scene.require(same, "2.2", "wrong partition", claim, got=got, expected=f"sinks {sinks}, hot {hot}, cold {cold}")
    memory = store.memory()
    scene.require(min(memory) >= 0, "10.3", "negative bytes", got=memory)
    scene.require(oracle.length > 0 or sum(memory) == 0, "10.3", "an empty store holds bytes", got=memory)


def check_blocks(scene: Scene, oracle: OracleStore, report: AttendReport, remaining: int | None) -> None:
    """Check that the call was cut into the right blocks, each with the right partition (SPEC 7, 2.3)."""
    expected = [(b.mode, b.start, b.stop - b.start) for b in oracle.blocks(remaining)]
    got = [(b.mode, b.first_query, b.query_tokens) for b in report.blocks]
    clause = "7.6" if remaining is not None else "7.5" if oracle.pending == 1 else "7.2"
    claim = f"[(b.mode, b.first_query, b.query_tokens) for b in report.blocks] == {expected}"
    scene.require(got == expected, clause, "wrong query blocks", claim, got=got, expected=expected)


def check_given(scene: Scene, hb: HeadBlock, report: BlockReport) -> Retrieved:
    """Read what one head retrieved; its form must be that of the contract (SPEC 9.6)."""
    b, h = hb.sequence, hb.kv_head
    candidates, selected = report.candidate_positions[b, h].tolist(), report.selected_positions[b, h].tolist()
    for name, row in (("candidate positions", candidates), ("selected positions", selected)):
        filled = [i for i in row if i >= 0]
        scene.require(row == filled + [-1] * (len(row) - len(filled)), "9.6", f"{name} not filled up by -1", got=row)
        scene.require(len(set(filled)) == len(filled), "9.6", f"{name} twice", got=row)
        scene.require(filled == sorted(filled), "9.6", f"{name} not ascending", got=row)
        scene.require(hb.block.mode == "retrieve" or not row, "9.6", f"{name} without retrieval", got=row)
    flags = bool(report.streamed[b, h]), bool(report.widened[b, h])
    given = Retrieved([i for i in candidates if i >= 0], [i for i in selected if i >= 0], *flags)
    unknown = [i for i in given.candidates if i not in hb.head.page_at]
    scene.require(not unknown, "4.4", "candidates that are no valid cold tokens", got=unknown)
    outside = [i for i in given.selected if i not in given.candidates]
    scene.require(not outside, "4.6", "selected positions that are no candidates", got=outside)
    return given


def check_masses(scene: Scene, got: tuple[float, float], expected: tuple[float, float], allowed: float) -> None:
    """Check the exact and the estimated share of one query (SPEC 6.1)."""
    close = all(abs(a - b) <= allowed + 2.0**-23 for a, b in zip(got, expected, strict=True))
    shares = all(0 <= a <= 1 for a in got)
    limit = allowed + 2.0**-23
    claim = f"abs({at_query(scene, 'exact_mass')} - {expected[0]!r}) <= {limit!r} and "
    claim += f"abs({at_query(scene, 'estimated_mass')} - {expected[1]!r}) <= {limit!r}"
    scene.require(close and shares, "6.1", "wrong mass", claim, got=got, expected=expected, allowed=allowed)


def check_bound(scene: Scene, got: float, true: float, bound: float, enlarged: float, allowed: float) -> None:
    """Check the missed bound of one query (SPEC 6.2)."""
    told, least = at_query(scene, "missed_bound"), true * (1 - 2.0**-40) - 2.0**-126
    claim = f"{told} >= {least!r}"
    scene.require(got >= least, "6.2", "bound below the missed mass", claim, got=got, missed=true)
    close = bound - allowed - 2.0**-23 <= got <= enlarged + allowed + 2.0**-23
    claim = f"{bound - allowed - 2.0**-23!r} <= {told} <= {enlarged + allowed + 2.0**-23!r}"
    scene.require(close, "6.2", "wrong bound", claim, got=got, expected=(bound, enlarged), allowed=allowed)


def check_output(scene: Scene, got: list[float], expected: list[float], allowed: list[float]) -> None:
    """Check the output of one query, after the hand-over (SPEC 5, 11.2)."""
    w = scene.where
    first = "report.blocks[0].first_query"
    for c, (a, b, limit) in enumerate(zip(got, expected, allowed, strict=True)):
        cell = f"output[{w['sequence']}, {w['head']}, {w['query']} - {first}, {c}].item()"
        if math.isfinite(b):
            facts = {"channel": c, "got": a, "expected": b, "difference": abs(a - b), "allowed": limit}
            claim = f"abs({cell} - {b!r}) <= {limit!r}"
            scene.require(abs(a - b) <= limit, "5.1", "wrong output", claim, **facts)
        else:
            claim = f"{cell} - {cell} != 0"  # NaN
            what = "a value that is not finite was absorbed"
            scene.require(not math.isfinite(a), "2.5", what, claim, channel=c, got=a)


def check_head(
    scene: Scene, hb: HeadBlock, report: BlockReport, output: torch.Tensor, exact: bool, precision: Precision
) -> tuple[int, int]:
    """Check one sequence and KV head of a block, output ``[HQ, TQ, DV]``; return the cold rows it had to read."""
    b = hb.sequence
    given = check_given(scene, hb, report)
    low = LowPrecision(hb.head, precision.compute)
    check_retrieval(scene, hb, given, low, precision, exact)
    shares = [report.exact_mass[b].tolist(), report.estimated_mass[b].tolist()]
    bounds = None if report.missed_bound is None else report.missed_bound[b].tolist()
    shift = hb.shift(given)
    errors = [] if not given.selected else token_errors(low, hb.vectors, given.selected, hb.modifiers.scale, precision)
    for n, (g, at, query, sink) in enumerate(hb.members):
        here, t = scene.at(head=g, query=at), at - hb.block.start
        terms = hb.terms(query, at, given, shift)
        expected = answer(terms, sink, output.shape[2])
        allowed = allowed_error(low, query, terms, expected, hb.modifiers, precision.of_block(given.streamed))
        check_masses(here, (shares[0][g][t], shares[1][g][t]), masses(terms, sink), allowed.mass)
        if bounds is not None:
            check_bound(here, bounds[g][t], *hb.bounds(query, at, sink, given), allowed.mass)
        limit = with_shift(allowed, terms, expected, shift, (query, n, errors, precision))
        check_output(here, output[g, t].tolist(), expected.output, limit)
    return hb.rows_read(given)
