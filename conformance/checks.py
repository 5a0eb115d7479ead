"""The comparisons: state, retrieval, masses and output of a target against the second oracle.

Retrieval is compared first, and must be identical in the exact population (SPEC 11.1) or admissible in the floating one
(SPEC 11.2). Then the oracle takes over the target's candidates and selection, and masses and outputs are compared.
"""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import currently_in_test_context, event
from kiv_reference.admissible import violation
from kiv_reference.contract import AttendReport, BlockReport

from .budgets import Precision, group_errors, output_budget, page_errors, token_errors, with_shift
from .claims import at_query, not_both
from .failure import Scene
from .identical import check_identical
from .low import LowPrecision
from .oracle import answer, group_scores
from .oracle_mass import whole_pages
from .oracle_store import HeadBlock, OracleStore, Retrieved, masses


def mark(text: str) -> None:
    """Count something in the statistics of Hypothesis, if a test of its is running."""
    if currently_in_test_context():
        event(text)


def check_state(scene: Scene, oracle: OracleStore) -> None:
    """Length, validity and the partition of the next call."""
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


def check_blocks(scene: Scene, oracle: OracleStore, report: AttendReport) -> None:
    """The call was cut into the right blocks, each with the right partition (SPEC 7, 2.3)."""
    expected = [(b.mode, b.start, b.stop - b.start) for b in oracle.blocks()]
    got = [(b.mode, b.first_query, b.query_tokens) for b in report.blocks]
    clause = "7.5" if oracle.pending == 1 else "7.2"
    claim = f"[(b.mode, b.first_query, b.query_tokens) for b in report.blocks] == {expected}"
    scene.require(got == expected, clause, "wrong query blocks", claim, got=got, expected=expected)


def check_given(scene: Scene, hb: HeadBlock, report: BlockReport) -> Retrieved:
    """Read what one head retrieved; its form must be that of the contract (SPEC 9.6)."""
    b, h = hb.sequence, hb.kv_head
    candidates, selected = report.candidate_pages[b, h].tolist(), report.selected_positions[b, h].tolist()
    for name, row in (("candidate pages", candidates), ("selected positions", selected)):
        filled = [i for i in row if i >= 0]
        scene.require(row == filled + [-1] * (len(row) - len(filled)), "9.6", f"{name} not filled up by -1", got=row)
        scene.require(len(set(filled)) == len(filled), "9.6", f"{name} twice", got=row)
        scene.require(hb.block.mode == "retrieve" or not row, "9.6", f"{name} without retrieval", got=row)
    given = Retrieved([i for i in candidates if i >= 0], [i for i in selected if i >= 0], bool(report.streamed[b, h]))
    unknown = [j for j in given.candidates if j not in hb.head.pages]
    scene.require(not unknown, "3.1", "candidates that are no cold pages with a valid token", got=unknown)
    inside = {i for j in given.candidates for i in hb.head.pages[j].positions}
    outside = [i for i in given.selected if i not in inside]
    scene.require(not outside, "4.6", "selected positions that are no valid tokens of candidates", got=outside)
    scene.require(given.selected == sorted(given.selected), "9.6", "selection not ascending", got=given.selected)
    return given


def check_retrieval(
    scene: Scene, hb: HeadBlock, given: Retrieved, low: LowPrecision, precision: Precision, exact: bool
) -> None:
    """Candidates and selection are the best ones (SPEC 4, 6.3, 11)."""
    if hb.block.mode != "retrieve" or not hb.members:
        streamed = hb.block.mode == "exact"
        scene.require(given == Retrieved([], [], streamed), "9.6", "a block that cannot retrieve did", got=given)
        return
    limited = hb.head.config.max_missed_mass is not None
    if exact and not limited:
        check_identical(scene, hb, given)
    if given.streamed:
        check_streamed(scene, hb, given, low, precision)
        return
    check_candidates(scene, hb, given, low, precision)
    check_selection(scene, hb, given, low, precision)


def check_candidates(scene: Scene, hb: HeadBlock, given: Retrieved, low: LowPrecision, precision: Precision) -> None:
    """The C best pages, best first, or as many as SPEC 6.3 took."""
    config, scale = hb.head.config, hb.modifiers.scale
    pages, by_member = hb.head.page_scores(hb.vectors, scale)
    least = min(config.candidate_pages, len(pages))
    enough = len(given.candidates) == least
    if config.max_missed_mass is not None:
        enough = least <= len(given.candidates) <= 4 * config.candidate_pages
    scene.require(enough, "4.4", "wrong number of candidates", got=len(given.candidates), expected=least)
    if not pages:
        return
    scores = group_scores(by_member, config.group)
    errors = group_errors(by_member, page_errors(low, hb.vectors, scale, precision), config.group, precision)
    places = [pages.index(j) for j in given.candidates]
    _admit(scene, "4.4", "candidate pages", scores, errors, places, pages)
    for better, worse in itertools.pairwise(places):
        ordered = scores[better] + errors[better] >= scores[worse] - errors[worse]
        scene.require(ordered, "9.6", "candidates not best first", got=given.candidates, scores=scores)


def check_selection(scene: Scene, hb: HeadBlock, given: Retrieved, low: LowPrecision, precision: Precision) -> None:
    """The R best tokens of the candidates, and the pages that SPEC 6.3 takes whole."""
    config, scale = hb.head.config, hb.modifiers.scale
    first = given.candidates[: config.candidate_pages]
    positions, by_member = hb.head.token_scores(hb.vectors, first, scale)
    if not positions:
        scene.require(not given.selected, "4.6", "a selection from no token", got=given.selected)
        return
    scores = group_scores(by_member, config.group)
    errors = group_errors(
        by_member, token_errors(low, hb.vectors, positions, scale, precision), config.group, precision
    )
    wanted = min(config.retrieve_tokens or 0, len(positions))
    if config.max_missed_mass is None:
        places = [positions.index(i) for i in given.selected]
        scene.require(len(places) == wanted, "4.6", "wrong number selected", got=len(places), expected=wanted)
        _admit(scene, "4.6", "selected positions", scores, errors, places, positions)
        return
    fits = [k for k in range(len(given.candidates) + 1) if _fits(hb, given, k, positions, scores, errors, wanted)]
    scene.require(bool(fits), "6.3", "not an admissible selection and the fewest whole pages", got=given)


def _whole(hb: HeadBlock, first: list[int], selected: list[int], enlarged: bool) -> int | None:
    """The k of SPEC 6.3 for pages ranked as `first`, then as the oracle ranks them."""
    rest = [j for j in hb.head.rank(hb.vectors, hb.modifiers.scale) if j not in first]
    queries = [(q, at, sink) for _, at, q, sink in hb.members]
    return whole_pages(hb.head, queries, first + rest, selected, hb.modifiers, enlarged)


def _fits(
    hb: HeadBlock,
    given: Retrieved,
    k: int,
    positions: list[int],
    scores: list[float],
    errors: list[float],
    wanted: int,
) -> bool:
    """Whether the selection is an admissible one plus the k best pages, and k the smallest that is enough."""
    whole = {i for j in given.candidates[:k] for i in hb.head.pages[j].positions}
    beside = [i for i in given.selected if i not in whole]
    if len(given.candidates) != min(max(k, hb.head.config.candidate_pages), len(hb.head.pages)):
        return False
    if not whole <= set(given.selected) or any(i not in positions for i in beside):
        return False
    room = wanted - len(beside)
    inside = [n for n, i in enumerate(positions) if i in whole]
    if not 0 <= room <= len(inside):
        return False
    others = [positions.index(i) for i in beside]
    readings = [chosen + others for chosen in _readings(hb, given.candidates, inside, positions, scores, errors, room)]
    admissible = [chosen for chosen in readings if violation(scores, errors, chosen) is None]
    for enlarged in (False, True):
        found = [_whole(hb, given.candidates, [positions[n] for n in chosen], enlarged) for chosen in admissible]
        if enlarged and not any(most is None or k <= most for most in found):
            return False
        if not enlarged and not any(least is not None and least <= k for least in found):
            return False
    return True


def _readings(
    hb: HeadBlock,
    candidates: list[int],
    inside: list[int],
    positions: list[int],
    scores: list[float],
    errors: list[float],
    room: int,
) -> list[list[int]]:
    """Which `room` tokens of the whole pages were selected as well: it does not show, and ties leave it open.

    The best by score; and where rounding may decide, those of the pages taken first, and those of the pages taken last:
    the extremes of what the missed bound can have been before these pages were taken.
    """
    by_score = sorted(inside, key=lambda n: -scores[n])
    if room == 0 or room == len(inside):
        return [by_score[:room]]
    last_in, first_out = by_score[room - 1], by_score[room]
    sure = {n for n in by_score[:room] if scores[n] - errors[n] > scores[first_out] + errors[first_out]}
    open_ = [n for n in inside if n not in sure and scores[n] + errors[n] >= scores[last_in] - errors[last_in]]
    page = {i: rank for rank, j in enumerate(candidates) for i in hb.head.pages[j].positions}
    early = sorted(open_, key=lambda n: page[positions[n]])
    free = room - len(sure)
    return [by_score[:room], [*sure, *early[:free]], [*sure, *early[::-1][:free]]]


def check_streamed(scene: Scene, hb: HeadBlock, given: Retrieved, low: LowPrecision, precision: Precision) -> None:
    """A head of a retrieving block attended to everything: SPEC 6.3 must have asked for it."""
    config, scale = hb.head.config, hb.modifiers.scale
    scene.require(config.max_missed_mass is not None, "6.3", "streamed without max_missed_mass")
    scene.require(not given.candidates and not given.selected, "9.6", "streamed, and retrieved", got=given)
    if not hb.head.pages:
        raise scene.mismatch("6.3", "streamed where nothing could be missed")
    _, by_member = hb.head.page_scores(hb.vectors, scale)
    scores = group_scores(by_member, config.group)
    errors = group_errors(by_member, page_errors(low, hb.vectors, scale, precision), config.group, precision)
    if _near_ties(scores, errors):
        mark("streamed: near ties, not judged")
        return
    selected = hb.head.select(hb.vectors, hb.head.rank(hb.vectors, scale)[: config.candidate_pages], scale)
    needed = _whole(hb, [], selected, enlarged=True) is None
    scene.require(needed, "6.3", "streamed where whole pages were enough")
    mark("streamed: needed")


def _near_ties(scores: list[float], errors: list[float]) -> bool:
    """Whether rounding may change the order."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return any(scores[a] - errors[a] <= scores[b] + errors[b] for a, b in itertools.pairwise(order))


def _admit(
    scene: Scene,
    clause: str,
    what: str,
    scores: list[float],
    errors: list[float],
    chosen: list[int],
    names: list[int],
) -> None:
    """Raise if the choice is not admissible (SPEC 11.2)."""
    ranked = sorted(scores, reverse=True)
    if 0 < len(chosen) < len(scores):
        margin = ranked[len(chosen) - 1] - ranked[len(chosen)]
        mark(f"{what}: {'tie' if margin == 0 else 'near tie' if margin <= 2 * max(errors) else 'clear'}")
    found = violation(scores, errors, chosen)
    if found is not None:
        raise scene.mismatch(
            clause,
            f"{what} are not the best",
            not_both(scene, what, names[found.chosen], names[found.rejected]),
            got=sorted(names[i] for i in chosen),
            n_th_best_score=ranked[len(chosen) - 1],
            chosen=f"{names[found.chosen]} with score {scores[found.chosen]!r} +- {errors[found.chosen]:.3g}",
            rejected=f"{names[found.rejected]} with score {scores[found.rejected]!r} +- {errors[found.rejected]:.3g}",
            beyond_the_margin_by=found.excess,
        )


def check_masses(scene: Scene, got: tuple[float, float], expected: tuple[float, float], budget: float) -> None:
    """Exact and estimated share of one query (SPEC 6.1)."""
    close = all(abs(a - b) <= budget + 2.0**-23 for a, b in zip(got, expected, strict=True))
    shares = all(0 <= a <= 1 for a in got)
    limit = budget + 2.0**-23
    claim = f"abs({at_query(scene, 'exact_mass')} - {expected[0]!r}) <= {limit!r} and "
    claim += f"abs({at_query(scene, 'estimated_mass')} - {expected[1]!r}) <= {limit!r}"
    scene.require(close and shares, "6.1", "wrong mass", claim, got=got, expected=expected, budget=budget)


def check_bound(scene: Scene, got: float, true: float, bound: float, enlarged: float, budget: float) -> None:
    """The missed bound of one query (SPEC 6.2)."""
    told, least = at_query(scene, "missed_bound"), true * (1 - 2.0**-40) - 2.0**-126
    claim = f"{told} >= {least!r}"
    scene.require(got >= least, "6.2", "bound below the missed mass", claim, got=got, missed=true)
    close = bound - budget - 2.0**-23 <= got <= enlarged + budget + 2.0**-23
    claim = f"{bound - budget - 2.0**-23!r} <= {told} <= {enlarged + budget + 2.0**-23!r}"
    scene.require(close, "6.2", "wrong bound", claim, got=got, expected=(bound, enlarged), budget=budget)


def check_output(scene: Scene, got: list[float], expected: list[float], budget: list[float]) -> None:
    """Output of one query, after the hand-over (SPEC 5, 11.2)."""
    w = scene.where
    first = "report.blocks[0].first_query"
    for c, (a, b, limit) in enumerate(zip(got, expected, budget, strict=True)):
        cell = f"output[{w['sequence']}, {w['head']}, {w['query']} - {first}, {c}].item()"
        if math.isfinite(b):
            facts = {"channel": c, "got": a, "expected": b, "difference": abs(a - b), "budget": limit}
            claim = f"abs({cell} - {b!r}) <= {limit!r}"
            scene.require(abs(a - b) <= limit, "5.1", "wrong output", claim, **facts)
        else:
            claim = f"{cell} - {cell} != 0"  # NaN
            what = "a value that is not finite was absorbed"
            scene.require(not math.isfinite(a), "2.5", what, claim, channel=c, got=a)


def check_head(
    scene: Scene, hb: HeadBlock, report: BlockReport, output: torch.Tensor, exact: bool, precision: Precision
) -> tuple[int, int]:
    """One sequence and KV head of one block, output ``[HQ, TQ, DV]``; returns the cold rows that it had to read."""
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
        budget = output_budget(low, query, terms, expected, hb.modifiers, precision)
        check_masses(here, (shares[0][g][t], shares[1][g][t]), masses(terms, sink), budget.mass)
        if bounds is not None:
            check_bound(here, bounds[g][t], *hb.bounds(query, at, sink, given), budget.mass)
        limit = with_shift(budget, terms, expected, shift, (query, n, errors, precision))
        check_output(here, output[g, t].tolist(), expected.output, limit)
    return hb.rows_read(given)
