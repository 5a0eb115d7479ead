"""How much softmax mass may have been left out (SPEC 6.2), and how many pages to take so that little is (6.3).

Computed in float64, one KV head at a time: a certificate, off the path of a plain decode.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from .attend import Part, Queries, always_parts
from .select import page_query, rank

if TYPE_CHECKING:
    from .retrieve import Candidates, View

STREAM_FACTOR = 4
"""At most this many times `candidate_pages` pages are taken before a head streams (SPEC 6.3)."""

WIDE = torch.float64


def _widen(queries: Queries) -> Queries:
    """The same queries in float64."""
    sinks = None if queries.sink_logits is None else queries.sink_logits.to(WIDE)
    return replace(queries, query=queries.query.to(WIDE), sink_logits=sinks)


def _always(view: View, queries: Queries) -> list[Part]:
    return always_parts(queries, view.always, view.cold.scratch)


def _attended_mass(always: list[Part], own: torch.Tensor | None, queries: Queries, head: int) -> torch.Tensor:
    """log E of one head without its leftovers, float64 ``[M]``; `own` are the selection's logits ``[M, R]``."""
    parts = [part.logits[head] for part in always]
    if own is not None:
        parts.append(own)
    if queries.sink_logits is not None:
        parts.append(queries.sink_logits[head].flatten()[:, None])
    return torch.logsumexp(torch.cat(parts, dim=1), dim=1)


def _upper(view: View, queries: Queries, head: int, pages: torch.Tensor) -> torch.Tensor:
    """log(n_j e^cap(b_j)) of pages int64 ``[K]`` in RAM: float64 ``[M, K]``, with room for the summaries' rounding."""
    cold, pages = view.cold, view.cold.transfer.send(pages)
    query = queries.query[head].flatten(0, 1)
    units = cold.page_ids(view.row, pages) * cold.shape.heads + head
    summary = cold.gather(cold.index.keys, units, 2 * cold.shape.key_width).to(WIDE)  # [K, 2 D]
    members = page_query(query[None], queries.scale, 1.0)[0]
    # A mean of P terms loses up to P + 8 units; |k| is at most |mean| + spread in every channel.
    unit = (cold.config.page_tokens + 8) * torch.finfo(cold.shape.compute).eps
    width = cold.shape.key_width
    room = unit * queries.scale * (query.abs() @ (summary[:, :width].abs() + summary[:, width:]).T)
    counts = cold.counts(view.row, pages).to(WIDE)
    return queries.cap(members @ summary.T + room) + torch.log(counts)


def _left(view: View, queries: Queries, head: int, tokens: Candidates, mask: torch.Tensor) -> torch.Tensor:
    """Log-mass of the tokens of each page that were not selected, float64 ``[M, C]``, pages as in `tokens`."""
    logits = queries.cap(tokens.raw[head]).masked_fill(mask[head], -torch.inf)
    return torch.logsumexp(logits.unflatten(1, (tokens.pages.shape[1], view.cold.config.page_tokens)), dim=2)


def _others(view: View, known: torch.Tensor) -> torch.Tensor:
    """Pages with a valid token beside the known ones, int64 ``[K]``, both in RAM; -1 among the known means none."""
    rest = view.row.counts(0, view.pages) > 0
    rest[known[known >= 0]] = False
    return rest.nonzero()[:, 0]


def missed_bound(view: View, queries: Queries, best: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The bound of SPEC 6.2, ``[H, M]`` in float32, rounded up.

    Parameters
    ----------
    best : int64 [H, C]
        Candidate pages; -1 fills up rows.
    mask : bool [H, C * P]
        Their attended tokens, pages in ascending order.
    """
    from .retrieve import read_candidates

    queries = _widen(queries)
    always, tokens = _always(view, queries), read_candidates(view, queries, best)
    pages = view.cold.transfer.fetch(tokens.pages)
    bounds: list[torch.Tensor] = []
    for head in range(mask.shape[0]):
        logits = queries.cap(tokens.raw[head])
        held = _attended_mass(always, logits[:, mask[head]], queries, head)
        unknown = _upper(view, queries, head, _others(view, pages[head]))
        missed = torch.logsumexp(torch.cat([_left(view, queries, head, tokens, mask), unknown], dim=1), dim=1)
        bounds.append(_share(missed, held))
    return _round_up(torch.stack(bounds))


def window_bound(view: View, queries: Queries) -> torch.Tensor:
    """The bound of SPEC 6.2, ``[H, M]`` in float32, where no cold token is attended."""
    queries = _widen(queries)
    always = _always(view, queries)
    none = torch.empty(0, dtype=torch.int64, device="cpu")
    bounds: list[torch.Tensor] = []
    for head in range(queries.query.shape[0]):
        held = _attended_mass(always, None, queries, head)
        bounds.append(_share(torch.logsumexp(_upper(view, queries, head, _others(view, none)), dim=1), held))
    return _round_up(torch.stack(bounds))


def _share(missed: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    return torch.where(missed == -torch.inf, 0.0, torch.exp(missed - torch.logaddexp(held, missed)))


def _round_up(share: torch.Tensor) -> torch.Tensor:
    """To float32, never downwards; the factor covers the rounding of float64."""
    share = (share * (1 + 2.0**-40)).clamp(max=1.0)
    short = share.to(torch.float32)
    return torch.where(short.to(WIDE) < share, torch.nextafter(short, torch.full_like(short, torch.inf)), short)


def _prefix(left: torch.Tensor) -> torch.Tensor:
    """Log-mass of the first k columns for k = 0, 1, ...: ``[M, K + 1]``."""
    none = left.new_full((left.shape[0], 1), -torch.inf)
    return torch.cat([none, torch.logcumsumexp(left, dim=1)], dim=1)


def enlarge(
    view: View,
    queries: Queries,
    members: torch.Tensor,
    best: torch.Tensor,
    tokens: Candidates,
    chosen: torch.Tensor,
) -> tuple[torch.Tensor, Candidates, torch.Tensor, torch.Tensor]:
    """Attend to the best pages whole until the bound holds (SPEC 6.3).

    Returns
    -------
    candidates int64 [H, C'], their tokens, the selection int64 [H, R'] as indices into those, and the heads that must
    stream, bool [H]; -1 fills up rows.
    """
    from .retrieve import read_candidates

    config, heads, size = view.cold.config, best.shape[0], view.cold.config.page_tokens
    assert config.max_missed_mass is not None, "called without a bound to keep"
    most = min(STREAM_FACTOR * config.candidate_pages, view.filled)
    ranked = rank(view.cold, view.row, members, view.pages, view.filled, config.group)
    ranked[:, : best.shape[1]] = best
    double, fetch = _widen(queries), view.cold.transfer.fetch
    always, wide = _always(view, double), read_candidates(view, double, ranked[:, :most])
    # The selection, as cold positions, in terms of the wider set of candidates.
    positions = torch.where(chosen < 0, -1, tokens.pages.gather(1, chosen.clamp(min=0) // size) * size + chosen % size)
    # What follows is decided by the host, page by page.
    ranked, positions, pages = fetch(ranked), fetch(positions), fetch(wide.pages)
    taken: list[int] = []
    masks: list[torch.Tensor] = []
    for head in range(heads):
        mask = torch.zeros(view.pages * size, dtype=torch.bool, device="cpu")
        mask[positions[head][positions[head] >= 0]] = True
        masks.append(mask)
        here = mask.view(-1, size)[pages[head]].flatten()
        here = view.cold.transfer.send(here)[None].expand(heads, -1)
        logits = queries.cap(wide.raw[head].to(WIDE))
        held = _attended_mass(always, logits[:, here[0]], double, head)
        order = view.cold.transfer.send(torch.searchsorted(pages[head], ranked[head, :most]))
        left = _left(view, double, head, wide, here)[:, order]  # [M, most], best first
        upper = _upper(view, double, head, ranked[head])
        c = best.shape[1]
        unknown = torch.cat([left[:, :c], upper[:, c:]], dim=1).flip(1)
        missed = _prefix(unknown).flip(1)[:, : most + 1]  # column k: what is left once k pages are taken
        bounds = _round_up(_share(missed, torch.logaddexp(held[:, None], _prefix(left))))
        enough = (bounds <= config.max_missed_mass).all(dim=0).nonzero()
        taken.append(int(enough[0]) if enough.numel() else -1)
    return _assemble(view, queries, ranked, taken, masks, best.shape[1])


def _assemble(
    view: View, queries: Queries, ranked: torch.Tensor, taken: list[int], masks: list[torch.Tensor], least: int
) -> tuple[torch.Tensor, Candidates, torch.Tensor, torch.Tensor]:
    """Candidates and selection of all heads, filled up with -1; `taken` pages of each head, -1 for one that streams."""
    from .retrieve import read_candidates

    size, transfer = view.cold.config.page_tokens, view.cold.transfer
    pages = [ranked[h, : max(k, least)] if k >= 0 else ranked[h, :0] for h, k in enumerate(taken)]
    best = transfer.send(_padded(pages))
    tokens = read_candidates(view, queries, best)
    taken_pages = transfer.fetch(tokens.pages)
    chosen: list[torch.Tensor] = []
    for head, k in enumerate(taken):
        mask = masks[head]
        if k < 0:
            chosen.append(torch.empty(0, dtype=torch.int64, device="cpu"))
            continue
        whole = ranked[head, :k]
        mask.view(-1, size)[whole] = True
        here = mask.view(-1, size)[taken_pages[head].clamp(min=0)]
        here = here & (taken_pages[head] >= 0)[:, None]
        seen = transfer.fetch(tokens.raw[head, 0] > -torch.inf)
        chosen.append((here.flatten() & seen).nonzero()[:, 0])
    streamed = transfer.send(torch.tensor([k < 0 for k in taken], device="cpu"))
    return best, tokens, transfer.send(_padded(chosen)), streamed


def _padded(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
