"""The fast implementation against the reference on one model, under a small budget (SPEC 11.2).

Both answer every attention call of the model with the same queries over the same tokens, and the fast one's answer goes
on to the next layer. So a near tie that the two break differently, as they may, does not make later layers differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from kiv_fast import FastPool
from kiv_hf import KIVCache, KIVConfig
from kiv_hf.compare.pool import ComparePool, CompareStore

from .feeds import PIECES, feed

if TYPE_CHECKING:
    from kiv_reference.contract import PoolFactory
    from kiv_reference.report import AttendReport

SMALL = KIVConfig(
    hot_tokens=8, sink_tokens=2, page_tokens=4, index_channels=4, candidate_tokens=7, retrieve_tokens=5,
    prefill="retrieve", query_block_tokens=4, exact_suffix_tokens=0,
)  # fmt: skip
"""Of 28 cold tokens at the end of the text 7 are candidates and 5 are selected."""


def compare_fast(
    model: Any,
    ids: torch.Tensor,
    feeds: list[str],
    batch: tuple[torch.Tensor, torch.Tensor] | None = None,
    candidate: PoolFactory = FastPool,
) -> int:
    """Feed `ids` to a model that is routed through KIV, with `candidate` and the reference at every call.

    Parameters
    ----------
    ids : int64 [B, TOKENS]
    feeds : names of `PIECES`
    batch : (int64 [2, TOKENS], int64 [2, TOKENS]), optional
        Padded token ids and their mask, fed in chunks.
    candidate : PoolFactory
        The implementation that is compared with the reference.

    Returns
    -------
    How many selections were compared in which something was left out: one for each query block, sequence and KV head.

    Raises
    ------
    KIVDivergenceError
        A selection is not admissible, or an output is outside the budget of rounding.
    """
    count = 0
    for name in feeds:
        count += _selections(model, ids, PIECES[name], None, candidate)
    if batch is not None:
        count += _selections(model, batch[0], PIECES["chunks"], batch[1], candidate)
    return count


def _selections(
    model: Any, ids: torch.Tensor, lengths: list[int], mask: torch.Tensor | None, candidate: PoolFactory
) -> int:
    pools: list[_CountingPool] = []

    def make(config: KIVConfig) -> _CountingPool:
        pools.append(_CountingPool(config, candidate))
        return pools[-1]

    with torch.inference_mode():
        feed(model, ids, KIVCache(model.config, SMALL, impl=make), lengths, mask)
    return sum(pool.selections for pool in pools)


class _CountingPool(ComparePool):
    """A comparing pool that counts the selections it compared."""

    selections = 0

    def layer_store(self) -> CompareStore:
        store = super().layer_store()
        attend = store.attend

        def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
            output = attend(*args, **kwargs)
            self.selections += _partial(store.report, self.config)
            return output

        store.attend = counted  # type: ignore[method-assign]
        return store


def _partial(report: AttendReport, config: KIVConfig) -> int:
    """Count the selections of `report` that are a choice: more cold tokens than may be selected."""
    blocks = [block for block in report.blocks if block.mode == "retrieve"]
    choices = [block for block in blocks if block.cold_pages * config.page_tokens > (config.retrieve_tokens or 0)]
    return sum(int((block.selected_positions >= 0).any(dim=-1).sum()) for block in choices)
