"""Where two implementations part: retrieval judged by SPEC 11.2, outputs after the hand-over of the selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from kiv_reference.admissible import violation
from kiv_reference.errors import KIVError
from kiv_reference.index import compute_dtype
from kiv_reference.partition import partition
from kiv_reference.select import group_scores

if TYPE_CHECKING:
    from kiv_reference.report import AttendReport, BlockReport
    from kiv_reference.store import ReferenceStore
    from kiv_reference.view import HeadView


class KIVDivergenceError(KIVError, AssertionError):
    """The implementation under comparison does not do what the specification says."""


@dataclass(frozen=True)
class Place:
    """Where a comparison is."""

    layer: int
    step: int
    block: int = 0
    sequence: int = 0
    kv_head: int = 0

    def error(self, clause: str, what: str, **facts: object) -> KIVDivergenceError:
        """Return the divergence, told with place, clause and margins."""
        place = ", ".join(f"{name} {value}" for name, value in vars(self).items())
        told = "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items())
        return KIVDivergenceError(f"SPEC {clause}: {what}, at {place} (layers count KIV layers); {told}")


@dataclass(frozen=True)
class Choice:
    """Positions that were chosen, and those they were chosen from; both int64, ascending (SPEC 9.6)."""

    place: Place
    clause: str
    what: str
    chosen: torch.Tensor
    among: torch.Tensor

    def require(self, wanted: set[int]) -> None:
        """Raise unless as many were chosen as one of `wanted`, each once and ascending.

        Raises
        ------
        KIVDivergenceError
            They are others.
        """
        chosen, among = self.chosen, self.among
        ascending = bool((chosen.diff() > 0).all())
        if chosen.numel() not in wanted or not ascending or not bool(torch.isin(chosen, among).all()):
            expected = f"{' or '.join(map(str, sorted(wanted)))} of {among.tolist()}, ascending"
            got = cast("object", chosen.tolist())
            raise self.place.error(self.clause, f"wrong {self.what}", got=got, expected=expected)


@dataclass(frozen=True)
class Call:
    """One attend: the truth is a reference store that holds the tokens in float64, and the codes of the keys' dtype."""

    truth: ReferenceStore
    query: torch.Tensor  # float64 [B, HQ, TQ, D]
    scale: float
    dtype: torch.dtype  # of the keys at the border
    place: Place

    def check_retrieval(self, report: AttendReport) -> None:
        """Check that blocks, candidates and selections of `report` are right (SPEC 4, 7).

        Raises
        ------
        KIVDivergenceError
            They are not.
        """
        expected = [(b.mode, b.first_query, b.query_tokens, b.cold_pages) for b in self.truth.report.blocks]
        got = [(b.mode, b.first_query, b.query_tokens, b.cold_pages) for b in report.blocks]
        if got != expected:
            raise self.place.error("7.2", "other query blocks", got=got, expected=expected)
        first = report.blocks[0].first_query
        for number, block in enumerate(report.blocks):
            if block.mode == "retrieve":
                start = block.first_query - first
                self._check_block(number, block, self.query[:, :, start : start + block.query_tokens])

    def _check_block(self, number: int, block: BlockReport, query: torch.Tensor) -> None:
        tokens = self.truth.contents
        assert tokens is not None
        batch, heads = tokens.key.tensor.shape[:2]
        valid = tokens.valid[:, block.first_query : block.first_query + block.query_tokens]
        grouped = cast("torch.Tensor", query.unflatten(1, (heads, -1)))  # [B, H, G, TQ, D]
        part = partition(self.truth.config, block.first_query)
        for b in range(batch):
            if not bool(valid[b].any()):
                continue
            for h in range(heads):
                place = Place(self.place.layer, self.place.step, number, b, h)
                members = grouped[b, h][:, valid[b]].flatten(0, 1)  # [M, D]
                self._check_head(place, tokens.view(b, h, part), members, block)

    def _check_head(self, place: Place, view: HeadView, members: torch.Tensor, block: BlockReport) -> None:
        config = self.truth.config
        b, h = place.sequence, place.kv_head
        limited = config.max_missed_mass is not None
        if bool(block.streamed[b, h]):
            if not limited:
                raise place.error("6.3", "streamed without max_missed_mass")
            return
        rows = (block.candidate_positions[b, h], block.selected_positions[b, h])
        candidates, selected = (row[row >= 0].to(members.device) for row in rows)
        cold = view.cold_positions()
        widened = bool(block.widened[b, h])
        times = (2,) if widened else (1, 2, 4) if limited else (1,)
        wanted = {min(n * config.candidate_tokens, cold.numel()) for n in times}
        choice = Choice(place, "4.4", "candidates", candidates, cold)
        choice.require(wanted)
        if cold.numel() == 0:
            return
        largest, width = view.keys(cold).abs().amax(dim=0), members.shape[1]
        # An approximate key is a sum, or a mean over a page, so that its products are those of a longer sum.
        slack = (2 * width + 2 * config.page_tokens + 12) * largest
        scores = view.estimates(members, cold, self.scale, compute_dtype(self.dtype))
        self._admit(choice, scores, self._rounding(members, view.approximate_keys(cold), slack))

        # All candidates are selected, and there are more of them, to hold max_missed_mass (SPEC 6.3); else there are
        # more where a head was widened (SPEC 4.9). Whether it had to be is a matter of near ties: not judged here.
        few = min(config.retrieve_tokens or 0, candidates.numel())
        more = candidates.numel() > config.candidate_tokens and not widened
        wanted = {few} if widened or not limited else {candidates.numel()} if more else {few, candidates.numel()}
        choice = Choice(place, "4.6", "selected positions", selected, candidates)
        choice.require(wanted)
        keys = view.keys(candidates)
        self._admit(choice, self.scale * (members @ keys.T), self._rounding(members, keys, (width + 12) * largest))

    def _admit(self, choice: Choice, scores: torch.Tensor, error: torch.Tensor) -> None:
        """Raise unless what was chosen is admissible as the best by the group score (SPEC 11.2).

        Parameters
        ----------
        choice : Choice
        scores : float64 [M, I]
            Of the positions it was chosen from, for each member.
        error : float64 [M, 1]
            Bound on their rounding.

        Raises
        ------
        KIVDivergenceError
            Something chosen scores less than something rejected, by more than rounding.
        """
        group = self.truth.config.group
        exact = group_scores(scores, group)
        if group == "max":
            errors = error.amax().expand_as(exact)
        else:
            # exp(s - max) moves by a factor e^(2 error) at most, and by the rounding of exp and sum.
            moved = torch.expm1((2 * error).clamp(max=80.0)) + 16 * self._unit()
            below = torch.exp(scores - scores.amax(dim=1, keepdim=True))
            errors = (below * moved).clamp(max=1.0).sum(dim=0) + torch.finfo(torch.float32).tiny
        items = cast("list[int]", torch.searchsorted(choice.among, choice.chosen).tolist())
        found = violation(cast("list[float]", exact.tolist()), cast("list[float]", errors.tolist()), items)
        if found is not None:
            ranked = exact.sort(descending=True).values
            raise choice.place.error(
                choice.clause,
                f"the {choice.what} are not the best",
                chosen=f"{int(choice.among[found.chosen])} with group score {float(exact[found.chosen])!r}",
                rejected=f"{int(choice.among[found.rejected])} with {float(exact[found.rejected])!r}",
                last_best_score=float(ranked[choice.chosen.numel() - 1]),
                beyond_the_margin_by=found.excess,
            )

    def _rounding(self, members: torch.Tensor, keys: torch.Tensor, slack: torch.Tensor) -> torch.Tensor:
        """Bound on the error of a member's scores in the dtype of computation, ``[M, 1]`` (SPEC 11.3).

        A low-precision run of the scores against float64, and the worst case of a sum of products in any order, whose
        parts are at most three times the largest key (the bottom of a page's range, and the codes' way above it).
        """
        low = torch.float64 if self.dtype == torch.float64 else torch.float32
        fine = members @ keys.T
        measured = (fine - (members.to(low) @ keys.to(low).T).double()).abs().amax(dim=1, keepdim=True)
        return self.scale * (measured + 3 * self._unit() * (members.abs() @ slack)[:, None])

    def _unit(self) -> float:
        low = torch.float64 if self.dtype == torch.float64 else torch.float32
        return torch.finfo(low).eps / 2


def attends_everything(report: AttendReport) -> torch.Tensor:
    """Tell of which queries every token is attended, by some head at least: bool ``[TQ, 1]``, in RAM."""
    parts = [
        torch.full((block.query_tokens, 1), block.mode == "exact" or bool(block.streamed.any()), device="cpu")
        for block in report.blocks
    ]
    return torch.cat(parts)


def check_outputs(
    place: Place, got: torch.Tensor, truth: torch.Tensor, low: torch.Tensor, rounding: torch.Tensor
) -> None:
    """Compare outputs ``[B, HQ, TQ, DV]`` after the hand-over (SPEC 11.2).

    Parameters
    ----------
    got : output of the implementation under comparison
    truth : float64, of the reference in float64
    low : of the reference in the dtype of `got`: its distance from `truth` is the allowed
    rounding : what rounding on the way may add to it, one number or ``[TQ, 1]``

    Raises
    ------
    KIVDivergenceError
        An output is outside the allowed, or finite where it must not be.
    """
    finite = torch.isfinite(truth)
    unit = torch.finfo(got.dtype).eps
    distance = (low.double() - truth).abs().masked_fill(~finite, 0).amax(dim=3, keepdim=True)
    allowed = 2 * distance + rounding + unit * truth.abs()
    wrong = torch.where(finite, (got.double() - truth).abs() > allowed, torch.isfinite(got))
    wrong |= finite & ~torch.isfinite(got)
    if bool(wrong.any()):
        b, head, query, channel = (int(i) for i in wrong.nonzero()[0])
        cell = b, head, query, channel
        raise place.error(
            "5.1",
            f"another output for sequence {b}, head {head}, query {query} of the call, channel {channel}",
            got=float(got[cell]),
            expected=float(truth[cell]),
            allowed=float(allowed.expand_as(truth)[cell]),
        )
