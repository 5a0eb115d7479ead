"""Faults in partition, life cycle and placement (SPEC 2, 9 and 10)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from kiv_reference import KIVConfig, block, call, store
from kiv_reference.growing import Growing
from kiv_reference.index import SAMPLE_TOKENS
from kiv_reference.partition import Partition
from kiv_reference.pool import ReferencePool
from kiv_reference.report import TierBytes, TierTokens
from kiv_reference.store import ReferenceStore
from kiv_reference.tokens import Tokens

from .patching import mutant
from .retrieval import more

if TYPE_CHECKING:
    from collections.abc import Callable


@mutant("page off by one position", (Partition, "page"))
def _(original: Any) -> Any:
    return lambda self, j: tuple(i + 1 for i in original(self, j))


@mutant("a page evicted too early", (KIVConfig, "cold_pages"))
def _(original: Any) -> Any:
    return lambda self, boundary: original(self, boundary + 1)


@mutant("a page evicted too late", (KIVConfig, "cold_pages"))
def _(original: Any) -> Any:
    return lambda self, boundary: original(self, boundary - 1)


@mutant("half a page is evicted", (KIVConfig, "cold_pages"))
def _(original: Any) -> Any:
    return lambda self, boundary: original(self, boundary + self.page_tokens // 2)


@mutant("padding answers zeros", (call.BlockCall, "_head"), look="2.4")
def _(original: Any) -> Any:
    def changed(self: call.BlockCall, query: torch.Tensor, sequence: int, head: int, given: Any) -> Any:
        result = original(self, query, sequence, head, given)
        valid = self.tokens.valid[sequence, self.block.start : self.block.stop]
        output = result.attended.output.masked_fill(~valid[:, None], 0)
        return result._replace(attended=result.attended._replace(output=output))

    return changed


@mutant("padding has a say in what others retrieve", (call.BlockCall, "_some"), look="2.4")
def _(original: Any) -> Any:
    def changed(self: call.BlockCall, query: torch.Tensor, sequence: int, head: int, mine: Any, given: Any) -> Any:
        everyone = torch.arange(query.shape[1], device=mine.device)
        return original(self, query, sequence, head, everyone if mine.numel() else mine, given)

    return changed


@mutant("validity of the first sequence for all", (Tokens, "view"), look="2.4")
def _(original: Any) -> Any:
    return lambda self, *rest: dataclasses.replace(original(self, *rest), valid=self.valid[0])


@mutant("stale index after a crop", (Tokens, "crop"), look="9.2")
def _(original: Any) -> Any:
    def changed(self: Tokens, length: int, part: Any) -> None:
        kept = [rows.clone() for rows in self.index]
        original(self, length, part)
        self.index = kept

    return changed


@mutant("a crop keeps the samples of what it drops", (Tokens, "crop"), (Tokens, "sample"), look="9.2")
def _(original: Any) -> Any:
    def crop(self: Tokens, length: int, part: Any) -> None:
        kept = self.sampled.clone()
        original(self, length, part)
        self.sampled = kept

    def sample(self: Tokens, query: torch.Tensor) -> None:
        if self.sampled.tensor.shape[2] < self.length // SAMPLE_TOKENS:
            original(self, query)

    return {"crop": crop, "sample": sample}[original.__name__]


@mutant("a crop forgets all samples", (Tokens, "crop"), look="9.2")
def _(original: Any) -> Any:
    def changed(self: Tokens, length: int, part: Any) -> None:
        original(self, length, part)
        self.sampled.crop(0)

    return changed


@mutant("crop keeps one token too many", (Tokens, "crop"), look="9.2")
def _(original: Any) -> Any:
    return lambda self, length, part: original(self, min(length + 1, self.length), part)


@mutant("crop forgets validity", (Tokens, "crop"), look="9.2")
def _(original: Any) -> Any:
    def changed(self: Tokens, length: int, part: Any) -> None:
        original(self, length, part)
        self.valid = torch.ones_like(self.valid)

    return changed


@mutant("attend is allowed after a crop", (ReferenceStore, "crop"), look="9.1")
def _(original: Any) -> Any:
    def changed(self: ReferenceStore, length: int) -> None:
        pending = 0 if self.contents is None else self.contents.pending
        original(self, length)
        if self.contents is not None and length == self.length:
            self.contents.pending = pending

    return changed


def _clone(kept: Any) -> Any:
    return [rows.clone() for rows in kept] if isinstance(kept, list) else kept.clone()


def _forgets(*names: str) -> Callable[[Any], Any]:
    """Choose sequences for everything but the tensors named."""

    def change(original: Any) -> Any:
        def changed(self: Tokens, rows: torch.Tensor) -> None:
            if rows.numel() != self.valid.shape[0]:
                original(self, rows)
                return
            kept = {name: _clone(getattr(self, name)) for name in names}
            original(self, rows)
            for name, value in kept.items():
                setattr(self, name, value)

        return changed

    return change


mutant("reorder forgets the index", (Tokens, "select"), look="9.3")(_forgets("index"))
mutant("reorder forgets samples", (Tokens, "select"), look="9.3")(_forgets("sampled"))
mutant("reorder forgets validity", (Tokens, "select"), look="9.3")(_forgets("valid"))
mutant("reorder forgets values", (Tokens, "select"), look="9.3")(_forgets("value"))


@mutant("repeat tiles instead of repeating in place", (ReferenceStore, "repeat_interleave"), look="9.3")
def _(original: Any) -> Any:
    def changed(self: Any, repeats: int) -> None:
        if repeats < 1 or self.contents is None:
            original(self, repeats)
            return
        self._select(torch.arange(self.contents.valid.shape[0]).repeat(repeats), False)

    return changed


@mutant("a fork shares the hot buffer", (Growing, "clone"), look="9.4")
def _(original: Any) -> Any:
    def changed(self: Growing) -> Growing:
        copy = original(self)
        copy.buffer = self.buffer
        return copy

    return changed


@mutant("the caller's tensor is kept, not copied", (Growing, "append"), look="9.1")
def _(original: Any) -> Any:
    def changed(self: Any, rows: torch.Tensor) -> None:
        if self._length == 0:
            self.buffer, self._length = rows, rows.shape[2]
        else:
            original(self, rows)

    return changed


@mutant("reset keeps the report", (ReferenceStore, "reset"), look="9.5")
def _(original: Any) -> Any:
    def changed(self: ReferenceStore) -> None:
        report = self.last_report
        original(self)
        self.last_report = report

    return changed


@mutant("reset keeps the tokens of the pool", (ReferenceStore, "memory"), look="9.5")
def _(original: Any) -> Any:
    def changed(self: Any) -> TierBytes:
        self._high = max(getattr(self, "_high", TierBytes(0, 0, 0)), original(self))
        return self._high

    return changed


@mutant("keys that are not finite are accepted", (store, "check_finite"), look="2.5")
def _(original: Any) -> Any:
    return lambda what, tensor, valid: None


@mutant("a refused append has half happened", (ReferenceStore, "append"), look="10.4")
def _(original: Any) -> Any:
    def changed(self: ReferenceStore, *arguments: Any, **named: Any) -> None:
        try:
            original(self, *arguments, **named)
        except Exception:
            if self.contents is not None:
                self.contents.pending = 0
            raise

    return changed


@mutant("negative rows count from the end", (ReferenceStore, "_select"), look="9.3")
def _(original: Any) -> Any:
    def changed(self: ReferenceStore, rows: torch.Tensor, same_size: bool) -> None:
        held = self.contents
        if held is not None and rows.ndim == 1 and rows.numel() and rows.dtype == torch.int64:
            rows = rows % held.valid.shape[0]
        original(self, rows, same_size)

    return changed


@mutant("budgets are not checked", (ReferencePool, "check_room"), look="10.2")
def _(original: Any) -> Any:
    return lambda self, store, needed: None


@mutant("placement changes retrieval", (block, "retrieve"), look="10.1")
def _(original: Any) -> Any:
    def changed(query: Any, at: Any, view: Any, m: Any, config: KIVConfig) -> Any:
        return original(query, at, view, m, config if config.ram_bytes is None else more(config, candidate_tokens=1))

    return changed


@mutant("a closed pool goes on", (ReferencePool, "check_open"), look="10.4")
def _(original: Any) -> Any:
    return lambda self: None


@mutant("hot and sinks mixed up in the account", (ReferenceStore, "tokens"))
def _(original: Any) -> Any:
    def changed(self: ReferenceStore) -> TierTokens:
        parts = original(self)
        return parts._replace(sinks=parts.hot, hot=parts.sinks)

    return changed
