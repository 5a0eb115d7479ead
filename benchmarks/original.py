"""The original KIV's rule, written anew as a layer store, to measure it inside the same binding.

Pages of 128 tokens, each known by its mean key alone. At each step every query head takes the 32 pages whose means
score best; keys *and* values of the union of these pages move to the device; one set of 256 tokens for all KV heads is
chosen by the maximum of the raw scores over all query heads; these and the last 2048 tokens are attended, with no sinks
and no tail.

It is kinder to the original than the original was: everything sits in buffers with room to spare (the original copied
its whole store at the first step and again every 128 tokens), whole pages are gathered instead of single rows, and
tokens of a page that is not full yet are attended rather than ranked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from kiv_reference.errors import KIVUnsupportedError, refuse
from kiv_reference.report import AttendReport, TierBytes, TierTokens

if TYPE_CHECKING:
    from kiv_reference import KIVConfig, StorePool

PAGE_TOKENS = 128
TOP_PAGES = 32
TOP_TOKENS = 256
HOT_TOKENS = 2048


class OriginalPool:
    """Maker of `OriginalStore`; the configuration is kept and not read: the rule has fixed numbers."""

    def __init__(self, config: KIVConfig) -> None:
        self.config = config
        self.stores: list[OriginalStore] = []

    def layer_store(self) -> OriginalStore:
        """Make the store of a layer."""
        self.stores.append(OriginalStore())
        return self.stores[-1]

    def memory(self) -> TierBytes:
        """Sum over the stores."""
        held = [store.memory() for store in self.stores]
        return TierBytes(*(sum(part) for part in zip(*held, strict=True))) if held else TierBytes(0, 0, 0)

    @property
    def moved_bytes(self) -> int:
        """Bytes that decode steps brought to the device so far, all stores together."""
        return sum(store.moved_bytes for store in self.stores)

    def close(self) -> None:
        """Free everything."""
        for store in self.stores:
            store.reset()


def original_pool(config: KIVConfig) -> StorePool:
    """Return a pool for `KIVCache`: of a store it has what a plain decode needs."""
    return cast("StorePool", OriginalPool(config))


class OriginalStore:
    """One layer, one sequence: decode by the original's rule, prompts by exact attention.

    Hot tokens and page means lie on the device of what is appended, cold pages in RAM.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.length = 0
        self.valid = None
        self.moved_bytes = 0
        self._first = 0  # place of the first hot token in `_hot`
        self._hot: list[torch.Tensor] = []  # keys and values, each [H, places, D]
        self._cold: list[torch.Tensor] = []  # the same, [H, capacity, D]
        self._means = torch.empty(0)  # [H, capacity / P, D], of cold pages

    @property
    def _cold_pages(self) -> int:
        return max(0, self.length - HOT_TOKENS) // PAGE_TOKENS

    def _recent(self) -> list[torch.Tensor]:
        return [hot[:, self._first : self._first + self.length - self._cold_pages * PAGE_TOKENS] for hot in self._hot]

    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Add n tokens, [1, H, n, D] each."""
        if key.shape[0] != 1 or valid is not None:
            rule = "the original KIV's rule is measured with one sequence without padding"
            raise refuse(KIVUnsupportedError, rule, tuple(key.shape), "Use KIV itself.")
        if not self._hot:
            self._hot = [new.new_empty(new.shape[1], 0, new.shape[3]) for new in (key, value)]
            self._cold = [hot.cpu() for hot in self._hot]
            self._means = self._hot[0].clone()
        recent, pages = self._recent(), self._cold_pages
        end = self._first + recent[0].shape[1]
        if end + key.shape[2] > self._hot[0].shape[1]:  # seldom: as many places as there are hot tokens are to spare
            places = recent[0].shape[1] + key.shape[2] + HOT_TOKENS
            self._hot = [part.new_empty(part.shape[0], places, part.shape[2]) for part in recent]
            self._first, end = 0, recent[0].shape[1]
            for hot, part in zip(self._hot, recent, strict=True):
                hot[:, :end] = part
        for hot, new in zip(self._hot, (key, value), strict=True):
            hot[:, end : end + new.shape[2]] = new[0]
        self.length += key.shape[2]
        self._evict(pages)

    def _evict(self, pages: int) -> None:
        """Move to RAM what is cold now, where `pages` pages were, and note the means of its keys."""
        start, stop = pages * PAGE_TOKENS, self._cold_pages * PAGE_TOKENS
        if start == stop:
            return
        leaving = slice(self._first, self._first + stop - start)
        self._cold = [_grown(cold, stop) for cold in self._cold]
        for cold, hot in zip(self._cold, self._hot, strict=True):
            cold[:, start:stop] = hot[:, leaving]
        self._means = _grown(self._means, self._cold_pages)
        fresh = self._hot[0][:, leaving].unflatten(1, (-1, PAGE_TOKENS))
        self._means[:, pages : self._cold_pages] = fresh.float().mean(dim=2).to(fresh.dtype)
        self._first = leaving.stop

    def attend(self, query: torch.Tensor, *, scale: float, **modifiers: object) -> torch.Tensor:
        """Attend; `query` is [1, HQ, TQ, D]. No modifier is supported."""
        if any(modifiers.get(name) is not None for name in ("softcap", "sink_logits")):
            raise refuse(KIVUnsupportedError, "the original KIV's rule has no modifiers", modifiers, "Use KIV itself.")
        if query.shape[2] > 1:
            return self._exact(query, scale)
        key, value = self._recent()
        flat = query[0].unflatten(0, (key.shape[0], -1))[:, :, 0]  # [H, G, D]
        if self._cold_pages > 0:
            chosen_key, chosen_value = self._retrieve(flat)
            key, value = torch.cat([chosen_key, key], dim=1), torch.cat([chosen_value, value], dim=1)
        logits = torch.bmm(flat, key.transpose(1, 2)).float() * scale
        output = torch.bmm(logits.softmax(dim=-1).to(value.dtype), value)  # [H, G, D]
        return output.view(1, -1, 1, output.shape[2])

    def _retrieve(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values, each [H, R, D], of the 256 tokens chosen for `query` [H, G, D]."""
        pages = self._cold_pages
        scores = torch.bmm(query, self._means[:, :pages].transpose(1, 2))  # [H, G, pages]
        union = scores.topk(min(TOP_PAGES, pages), dim=-1).indices.unique()
        cold = (held[:, : pages * PAGE_TOKENS].unflatten(1, (-1, PAGE_TOKENS)) for held in self._cold)
        rows = (part.index_select(1, union.cpu()).flatten(1, 2) for part in cold)
        key, value = (part.to(query.device) for part in rows)  # [H, U * P, D]
        self.moved_bytes += key.nbytes + value.nbytes
        raw = torch.bmm(query, key.transpose(1, 2)).amax(dim=(0, 1))  # [U * P]
        best = raw.topk(min(TOP_TOKENS, raw.numel())).indices
        return key.index_select(1, best), value.index_select(1, best)

    def _exact(self, query: torch.Tensor, scale: float) -> torch.Tensor:
        """Attend causally to all tokens: what a prompt gets here, so that its K/V are those of the model."""
        seen = torch.ones(query.shape[2], self.length, dtype=torch.bool, device=query.device)
        mask = seen.tril(self.length - query.shape[2])
        groups, cold = query.shape[1] // self._hot[0].shape[0], self._cold_pages * PAGE_TOKENS
        far = [held[:, :cold].to(query.device) for held in self._cold]
        whole = (torch.cat(parts, dim=1) for parts in zip(far, self._recent(), strict=True))
        key, value = (part.repeat_interleave(groups, dim=0)[None] for part in whole)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    @property
    def report(self) -> AttendReport:
        """The rule reports nothing but `moved_bytes`."""
        raise refuse(KIVUnsupportedError, "the original KIV's rule has no report", "a read of it", "Use KIV itself.")

    def memory(self) -> TierBytes:
        """Count the bytes that the rule needs: hot part and page means on the device, cold pages in RAM."""
        if self.length == 0:
            return TierBytes(0, 0, 0)
        cold, pages = self._cold_pages * PAGE_TOKENS, self._cold_pages
        device = sum(part.nbytes for part in self._recent()) + self._means[:, :pages].nbytes
        return TierBytes(device, sum(held[:, :cold].nbytes for held in self._cold), 0)

    def tokens(self) -> TierTokens:
        """Return positions in each part."""
        cold = self._cold_pages * PAGE_TOKENS
        return TierTokens(0, self.length - cold, cold, 0)


def _grown(tensor: torch.Tensor, needed: int) -> torch.Tensor:
    """Return `tensor` [H, n, D] itself if it has `needed` places, else a copy with at least twice as many."""
    heads, have, width = tensor.shape
    if needed <= have:
        return tensor
    grown = tensor.new_empty(heads, max(needed, 2 * have), width)
    grown[:, :have] = tensor
    return grown
