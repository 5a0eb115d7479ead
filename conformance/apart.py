"""Queries at invalid positions: answered apart from the valid ones, by the same rules (SPEC 2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .allowed_error import Precision, allowed_error, token_errors, with_shift
from .checks import check_output
from .checks_limit import settled
from .checks_retrieval import mark
from .low import LowPrecision
from .oracle import answer

if TYPE_CHECKING:
    import torch

    from .failure import Scene
    from .oracle_block import HeadBlock


def check_apart(scene: Scene, hb: HeadBlock, output: torch.Tensor, exact: bool, precision: Precision) -> None:
    """Check the queries at invalid positions, `hb`'s members, output ``[HQ, TQ, DV]`` (SPEC 2.4).

    What they retrieve is not reported: their output tells only where there is nothing to choose or nothing to doubt.
    """
    if not hb.members:
        return
    head, low = hb.head, LowPrecision(hb.head, precision.compute)
    limited = hb.block.mode == "retrieve" and head.config.max_missed_mass is not None
    given = settled(hb, low, precision) if limited else hb.retrieve()
    if given is None:  # the limit holds or does not hold by rounding
        mark("padding asks: retrieve, undecided")
        return
    certain = given.streamed or given.selected == list(head.page_at) or (exact and not limited)
    mark(f"padding asks: {hb.block.mode}, {'certain' if certain else 'unknown'}")
    if not certain:
        return
    shift = hb.shift(given)
    errors = [] if not given.selected else token_errors(low, hb.vectors, given.selected, hb.modifiers.scale, precision)
    for n, (g, at, query, sink) in enumerate(hb.members):
        terms = hb.terms(query, at, given, shift)
        expected = answer(terms, sink, output.shape[2])
        allowed = allowed_error(low, query, terms, expected, hb.modifiers, precision.of_block(given.streamed))
        limit = with_shift(allowed, terms, expected, shift, (query, n, errors, precision))
        check_output(scene.at(head=g, query=at), output[g, at - hb.block.start].tolist(), expected.output, limit)
