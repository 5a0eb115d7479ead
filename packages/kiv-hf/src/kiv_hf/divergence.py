"""Where two implementations part: retrieval judged by SPEC 11.2, outputs after the hand-over of the selection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from kiv_reference.admissible import violation
from kiv_reference.errors import KIVError
from kiv_reference.partition import partition
from kiv_reference.report import AttendReport, BlockReport
from kiv_reference.select import group_scores, page_scores
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
        """The divergence, told with place, clause and margins."""
        place = ", ".join(f"{name} {value}" for name, value in vars(self).items())
        told = "; ".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items())
        return KIVDivergenceError(f"SPEC {clause}: {what}, at {place} (layers count KIV layers); {told}")


@dataclass(frozen=True)
class Call:
    """One attend: the truth is a reference store that holds the tokens in float64."""

    truth: ReferenceStore
    query: torch.Tensor  # float64 [B, HQ, TQ, D]
    scale: float
    dtype: torch.dtype  # of the keys at the border
    place: Place

    def check_retrieval(self, report: AttendReport) -> None:
        """Blocks, candidates and selections of `report` are right (SPEC 4, 7).

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
        tokens = self.truth._tokens
        assert tokens is not None
        batch, heads = tokens.key.tensor.shape[:2]
        valid = tokens.valid[:, block.first_query : block.first_query + block.query_tokens]
        grouped = query.unflatten(1, (heads, -1))  # [B, H, G, TQ, D]
        part = partition(self.truth._config, block.first_query)
        for b in range(batch):
            if not bool(valid[b].any()):
                continue
            for h in range(heads):
                place = Place(self.place.layer, self.place.step, number, b, h)
                members = grouped[b, h][:, valid[b]].flatten(0, 1)  # [M, D]
                self._check_head(place, tokens.view(b, h, part), members, block)

    def _check_head(self, place: Place, view: HeadView, members: torch.Tensor, block: BlockReport) -> None:
        config = self.truth._config
        b, h = place.sequence, place.kv_head
        limited = config.max_missed_mass is not None
        if bool(block.streamed[b, h]):
            if not limited:
                raise place.error("6.3", "streamed without max_missed_mass")
            return
        candidates = [j for j in block.candidate_pages[b, h].tolist() if j >= 0]
        selected = [i for i in block.selected_positions[b, h].tolist() if i >= 0]
        pages: list[int] = view.pages().tolist()
        wanted = min(config.candidate_pages, len(pages))
        if len(candidates) < wanted or (len(candidates) > wanted and not limited) or not set(candidates) <= set(pages):
            raise place.error("4.4", "wrong candidates", got=candidates, expected=f"{wanted} of {pages}")
        if not pages:
            return
        scores = self._page_scores(view, members)
        self._admit(place, "4.4", "candidate pages", scores, candidates, pages, view, members)

        positions = torch.cat([view.page_positions(j) for j in sorted(candidates)])
        names: list[int] = positions.tolist()
        wanted = min(config.retrieve_tokens or 0, len(names))
        if len(selected) < wanted or (len(selected) > wanted and not limited) or not set(selected) <= set(names):
            raise place.error("4.6", "wrong selection", got=selected, expected=f"{wanted} of {names}")
        if not limited:  # else whole pages hide which tokens were selected
            scores = self.scale * (members @ view.keys(positions).T)
            self._admit(place, "4.6", "selected positions", scores, selected, names, view, members)

    def _page_scores(self, view: HeadView, members: torch.Tensor) -> torch.Tensor:
        pages = view.pages()
        weight = self.truth._config.spread_weight
        return page_scores(members, view.mean[pages], view.spread[pages], self.scale, weight)

    def _admit(
        self,
        place: Place,
        clause: str,
        what: str,
        scores: torch.Tensor,
        chosen: list[int],
        names: list[int],
        view: HeadView,
        members: torch.Tensor,
    ) -> None:
        """Raise unless the `chosen` of `names`, with scores ``[M, I]`` in float64, are admissible (SPEC 11.2)."""
        group = self.truth._config.group
        error = self._rounding(view, members)  # [M, 1]
        exact = group_scores(scores, group)
        if group == "max":
            errors = error.amax().expand_as(exact)
        else:
            # exp(s - max) moves by a factor e^(2 error) at most, and by the rounding of exp and sum.
            moved = torch.expm1((2 * error).clamp(max=80.0)) + 16 * self._unit()
            below = torch.exp(scores - scores.amax(dim=1, keepdim=True))
            errors = (below * moved).clamp(max=1.0).sum(dim=0) + torch.finfo(torch.float32).tiny
        found = violation(exact.tolist(), errors.tolist(), [names.index(name) for name in chosen])
        if found is not None:
            ranked = exact.sort(descending=True).values
            raise place.error(
                clause,
                f"{what} are not the best",
                chosen=f"{names[found.chosen]} with group score {float(exact[found.chosen])!r}",
                rejected=f"{names[found.rejected]} with {float(exact[found.rejected])!r}",
                last_best_score=float(ranked[len(chosen) - 1]),
                beyond_the_margin_by=found.excess,
            )

    def _rounding(self, view: HeadView, members: torch.Tensor) -> torch.Tensor:
        """Bound on the error of a member's scores in the dtype of computation, ``[M, 1]`` (SPEC 11.3).

        A low-precision run of the token scores against float64, and the worst case of a sum of products in any order.
        """
        keys = view.keys(view.cold_positions())  # [K, D]
        low = torch.float64 if self.dtype == torch.float64 else torch.float32
        fine = members @ keys.T
        measured = (fine - (members.to(low) @ keys.to(low).T).double()).abs().amax(dim=1, keepdim=True)
        steps = 3 * (members.shape[1] + 2 * self.truth._config.page_tokens + 12) * self._unit()
        reach = (members.abs() @ keys.abs().amax(dim=0))[:, None] * (1 + self.truth._config.spread_weight)
        return self.scale * (measured + steps * reach)

    def _unit(self) -> float:
        low = torch.float64 if self.dtype == torch.float64 else torch.float32
        return torch.finfo(low).eps / 2


def check_outputs(place: Place, got: torch.Tensor, truth: torch.Tensor, low: torch.Tensor, rounding: float) -> None:
    """Compare outputs ``[B, HQ, TQ, DV]`` after the hand-over (SPEC 11.2).

    Parameters
    ----------
    got : output of the implementation under comparison
    truth : float64, of the reference in float64
    low : of the reference in the dtype of `got`: its distance from `truth` is the budget
    rounding : what the order of sums may add to it

    Raises
    ------
    KIVDivergenceError
        An output is outside the budget, or finite where it must not be.
    """
    finite = torch.isfinite(truth)
    unit = torch.finfo(got.dtype).eps
    distance = (low.double() - truth).abs().masked_fill(~finite, 0).amax(dim=3, keepdim=True)
    budget = 2 * distance + rounding + unit * truth.abs()
    wrong = torch.where(finite, (got.double() - truth).abs() > budget, torch.isfinite(got))
    wrong |= finite & ~torch.isfinite(got)
    if bool(wrong.any()):
        b, head, query, channel = (int(i) for i in wrong.nonzero()[0])
        cell = b, head, query, channel
        raise place.error(
            "5.1",
            f"another output for sequence {b}, head {head}, query {query} of the call, channel {channel}",
            got=float(got[cell]),
            expected=float(truth[cell]),
            budget=float(budget.expand_as(truth)[cell]),
        )
