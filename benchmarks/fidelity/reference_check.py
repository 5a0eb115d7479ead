"""The vectorised rule against the reference's own functions, on sampled scenes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from kiv_reference.attend import Modifiers
from kiv_reference.block import attend_block
from kiv_reference.config import KIVConfig
from kiv_reference.partition import Partition
from kiv_reference.summary import summarise
from kiv_reference.view import HeadView

from .rows import RETRIEVE_TOKENS, kiv_rule
from .scene import Scene, Setting


class Difference(NamedTuple):
    """Of the vectorised rule from the reference, over the queries of a scene.

    Attributes
    ----------
    output : float
        Largest ‖o − o_reference‖ / ‖o_reference‖.
    tokens : float
        Share of selected tokens that the reference did not select.
    queries : int
        Queries compared.
    """

    output: float
    tokens: float
    queries: int


def head_view(scene: Scene, head: int, query: int, page_tokens: int) -> HeadView:
    """What the reference sees when the query `query` of the scene decodes."""
    length = int(scene.positions[query]) + 1
    key, value = scene.key[head, :length], scene.value[head, :length]
    pages = scene.cold_tokens // page_tokens
    valid = torch.ones(page_tokens, dtype=torch.bool)
    paged_key, paged_value = scene.paged_keys(page_tokens)[head], scene.paged_values(page_tokens)[head]
    found = [summarise(paged_key[None, j], paged_value[None, j], valid) for j in range(pages)]
    return HeadView(
        key=key,
        value=value,
        valid=torch.ones(length, dtype=torch.bool),
        count=torch.full((pages,), page_tokens),
        mean=torch.cat([s.mean for s in found]),
        spread=torch.cat([s.spread for s in found]),
        value_mean=torch.cat([s.value for s in found]),
        partition=Partition(scene.cold_start, pages, page_tokens),
    )


def compare(scene: Scene, setting: Setting, queries: int, retrieve_tokens: int | None = RETRIEVE_TOKENS) -> Difference:
    """Answer the first `queries` queries of every KV head by both."""
    config = KIVConfig()
    config = KIVConfig(
        retrieve_tokens=retrieve_tokens,
        candidate_pages=setting.candidate_tokens // config.page_tokens,
        hot_tokens=setting.hot_tokens,
        sink_tokens=setting.sink_tokens,
    )
    answer = kiv_rule("KIV", config).answer(scene, setting)
    worst, other, selected = 0.0, 0, 0
    for head in range(scene.key.shape[0]):
        for query in range(queries):
            view = head_view(scene, head, query, config.page_tokens)
            result = attend_block(
                scene.query[head, query][:, None],
                scene.positions[query : query + 1],
                view,
                Modifiers(scene.scale, None, None),
                config,
                "retrieve",
                bound=False,
            )
            expected = result.attended.output[:, 0]
            error = (answer.output[head, query] - expected).norm(dim=1) / expected.norm(dim=1)
            worst = max(worst, float(error.max()))
            mine = answer.selected[head, query, 0].nonzero()[:, 0] + scene.cold_start
            other += int((~torch.isin(mine, result.retrieval.selected)).sum())
            selected += mine.numel()
    return Difference(worst, other / max(1, selected), queries * scene.key.shape[0])
