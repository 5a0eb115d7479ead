"""The original KIV's rule, written anew as a layer store, to measure it inside the same binding.

Pages of 128 tokens, each known by its mean key alone. At each step every query head takes the 32 pages whose means
score best; keys *and* values of the union of these pages move to the device; one set of 256 tokens for all KV heads is
chosen by the maximum of the raw scores over all query heads; these and the last 2048 tokens are attended, with no sinks
and no tail.

It is kinder to the original than the original was: cold pages sit in a preallocated arena (the original copied its
whole store at the first step and again every 128 tokens), whole pages are gathered instead of single rows, and tokens
of a page that is not full yet are attended rather than ranked.
"""

from __future__ import annotations

import torch
from kiv_reference.config import KIVConfig
from kiv_reference.errors import KIVUnsupportedError, refuse
from kiv_reference.report import AttendReport, TierBytes, TierTokens

PAGE_TOKENS = 128
TOP_PAGES = 32
TOP_TOKENS = 256
HOT_TOKENS = 2048


class OriginalPool:
    """Maker of `OriginalStore`; the configuration is kept and not read: the rule has fixed numbers.

    Only `hot_tokens` may be another, for contexts too short for the published one.
    """

    def __init__(self, config: KIVConfig, hot_tokens: int = HOT_TOKENS) -> None:
        self.config = config
        self._hot_tokens = hot_tokens
        self.stores: list[OriginalStore] = []

    def layer_store(self) -> OriginalStore:
        """Make the store of a layer."""
        self.stores.append(OriginalStore(self._hot_tokens))
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


class OriginalStore:
    """One layer, one sequence: decode by the original's rule, prompts by exact attention."""

    def __init__(self, hot_tokens: int = HOT_TOKENS) -> None:
        self._hot_tokens = hot_tokens
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.length = 0
        self.valid = None
        self.moved_bytes = 0
        self._pages = 0
        self._cold: list[torch.Tensor] = []  # keys and values, each [capacity, H, P, D]
        self._means = torch.empty(0)  # [H, capacity, D]
        self._recent: list[torch.Tensor] = []  # keys and values, each [H, capacity, D]

    @property
    def _recent_tokens(self) -> int:
        return self.length - self._pages * PAGE_TOKENS

    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Add n tokens, [1, H, n, D] each; full pages beyond the hot window become cold."""
        if key.shape[0] != 1 or valid is not None:
            rule = "the original KIV's rule is measured with one sequence without padding"
            raise refuse(KIVUnsupportedError, rule, tuple(key.shape), "Use KIV itself.")
        start, count = self._recent_tokens, key.shape[2]
        for i, new in enumerate((key[0], value[0])):
            if self.length == 0:
                self._cold.append(new.new_empty(0, new.shape[0], PAGE_TOKENS, new.shape[2]))
                self._recent.append(new.new_empty(new.shape[0], 0, new.shape[2]))
            self._recent[i] = _grown(self._recent[i], 1, start + count)
            self._recent[i][:, start : start + count] = new
        self.length += count
        self._evict(max(0, (start + count - self._hot_tokens) // PAGE_TOKENS))

    def _evict(self, pages: int) -> None:
        if pages == 0:
            return
        tokens, first = pages * PAGE_TOKENS, self._pages
        left = self._recent_tokens - tokens
        for i, recent in enumerate(self._recent):
            heads, _, width = recent.shape
            moved = recent[:, :tokens].reshape(heads, pages, PAGE_TOKENS, width)
            self._cold[i] = _grown(self._cold[i], 0, first + pages)
            self._cold[i][first : first + pages] = moved.transpose(0, 1)
            if i == 0:
                means = moved.float().mean(dim=2).to(moved.dtype)
                capacity = self._cold[0].shape[0]
                if self._means.shape[0] == 0:
                    self._means = means.new_empty(heads, 0, width)
                self._means = _grown(self._means, 1, capacity)
                self._means[:, first : first + pages] = means
            recent[:, :left] = recent[:, tokens : tokens + left].clone()
        self._pages += pages

    def attend(self, query: torch.Tensor, *, scale: float, **modifiers: object) -> torch.Tensor:
        """Attend; `query` is [1, HQ, TQ, D]. No modifier is supported."""
        if any(modifiers.get(name) is not None for name in ("softcap", "sink_logits")):
            raise refuse(KIVUnsupportedError, "the original KIV's rule has no modifiers", modifiers, "Use KIV itself.")
        recent_key, recent_value = (recent[:, : self._recent_tokens] for recent in self._recent)
        heads, width = recent_key.shape[0], query.shape[-1]
        grouped = query[0].view(heads, -1, query.shape[2], width)  # [H, G, TQ, D]
        if query.shape[2] > 1:
            return self._exact(query, scale)
        flat = grouped[:, :, 0]  # [H, G, D]
        key, value = recent_key, recent_value
        if self._pages > 0:
            chosen_key, chosen_value = self._retrieve(flat)
            key, value = torch.cat([chosen_key, key], dim=1), torch.cat([chosen_value, value], dim=1)
        logits = torch.bmm(flat, key.transpose(1, 2)).float() * scale
        output = torch.bmm(logits.softmax(dim=-1).to(value.dtype), value)  # [H, G, D]
        return output.view(1, -1, 1, width)

    def _retrieve(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, each [H, R, D], of the 256 tokens chosen for `query` [H, G, D]."""
        scores = torch.bmm(query, self._means[:, : self._pages].transpose(1, 2))  # [H, G, pages]
        union = scores.topk(min(TOP_PAGES, self._pages), dim=-1).indices.unique()
        fetched = [cold.index_select(0, union).transpose(0, 1).flatten(1, 2) for cold in self._cold]  # [H, U * P, D]
        self.moved_bytes += sum(part.numel() * part.element_size() for part in fetched)
        raw = torch.bmm(query, fetched[0].transpose(1, 2)).amax(dim=(0, 1))  # [U * P]
        best = raw.topk(min(TOP_TOKENS, raw.numel())).indices
        return fetched[0].index_select(1, best), fetched[1].index_select(1, best)

    def _exact(self, query: torch.Tensor, scale: float) -> torch.Tensor:
        """Causal attention over all tokens: what a prompt gets here, so that its K/V are those of the model."""
        both = [
            torch.cat([cold[: self._pages].transpose(0, 1).flatten(1, 2), recent[:, : self._recent_tokens]], dim=1)
            for cold, recent in zip(self._cold, self._recent, strict=True)
        ]
        mask = torch.ones(query.shape[2], self.length, dtype=torch.bool).tril(self.length - query.shape[2])
        groups = query.shape[1] // both[0].shape[0]
        key, value = (part.repeat_interleave(groups, dim=0)[None] for part in both)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    @property
    def report(self) -> AttendReport:
        """The rule reports nothing but `moved_bytes`."""
        raise refuse(KIVUnsupportedError, "the original KIV's rule has no report", "a read of it", "Use KIV itself.")

    def memory(self) -> TierBytes:
        """Bytes that the rule needs: the hot part and the page means on the device, cold pages in RAM."""
        if self.length == 0:
            return TierBytes(0, 0, 0)
        hot = sum(part[:, : self._recent_tokens].numel() * part.element_size() for part in self._recent)
        means = self._means[:, : self._pages].numel() * self._means.element_size()
        return TierBytes(hot + means, sum(cold[: self._pages].numel() * cold.element_size() for cold in self._cold), 0)

    def tokens(self) -> TierTokens:
        """Positions in each part."""
        return TierTokens(0, self._recent_tokens, self._pages * PAGE_TOKENS, 0)


def _grown(tensor: torch.Tensor, dim: int, needed: int) -> torch.Tensor:
    """`tensor` itself if it has `needed` places along `dim`, else a copy with at least twice as many."""
    have = tensor.shape[dim]
    if needed <= have:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = needed if have == 0 else max(needed, 2 * have)
    grown = tensor.new_empty(shape)
    grown.narrow(dim, 0, have).copy_(tensor)
    return grown
