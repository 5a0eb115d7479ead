"""Faults in attention, tail and query blocks (SPEC 5, 7 and 8)."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from kiv_reference import block, store, tail
from kiv_reference.attend import Attended, Modifiers, Pseudo
from kiv_reference.call import BlockCall
from kiv_reference.partition import QueryBlock
from kiv_reference.tokens import Tokens
from kiv_reference.view import HeadView

from .patching import mutant, reworded

BOTH = ((block, "attend_tokens"), (block, "attend_exactly"))


@mutant("wrong KV head", (Tokens, "view"))
def _(original: Any) -> Any:
    def changed(self: Tokens, sequence: int, head: int, part: Any) -> Any:
        return original(self, sequence, (head + 1) % self.key.tensor.shape[1], part)

    return changed


@mutant("query heads dealt out in turn", (BlockCall, "run"))
def _(original: Any) -> Any:
    def changed(self: BlockCall, query: torch.Tensor, given: Any) -> Any:
        heads = self.tokens.key.tensor.shape[1]
        order = torch.arange(query.shape[1]).view(-1, heads).T.flatten()
        output, report = original(self, query[:, order], given)
        return output[:, order.argsort()], report

    return changed


@mutant("K and V swapped where they are equally wide", (Tokens, "append"))
def _(original: Any) -> Any:
    def changed(self: Tokens, key: torch.Tensor, value: torch.Tensor, valid: Any) -> None:
        original(self, *((value, key) if key.shape == value.shape else (key, value)), valid)

    return changed


@mutant("dropped sink", (HeadView, "always_attended"))
def _(original: Any) -> Any:
    return lambda self: original(self)[1:] if self.partition.cold_start else original(self)


@mutant("sinks kept in the hot part only", (HeadView, "always_attended"))
def _(original: Any) -> Any:
    return lambda self: self.positions(self.partition.hot_start, self.valid.shape[0])


@mutant("dropped last hot token", (HeadView, "always_attended"))
def _(original: Any) -> Any:
    return lambda self: original(self)[:-1]


@mutant("causal mask off by one: the next token is seen", *BOTH)
def _(original: Any) -> Any:
    def changed(query: Any, at: torch.Tensor, view: HeadView, *rest: Any) -> Any:
        return original(query, at + (at + 1 < view.valid.shape[0]).long(), view, *rest)

    return changed


@mutant("causal mask off by one: the token itself is not seen", *BOTH)
def _(original: Any) -> Any:
    return lambda query, at, *rest: original(query, at - 1, *rest)


@mutant("scale twice in the logits", (Modifiers, "logits"))
def _(original: Any) -> Any:
    return lambda self, query, keys: self.cap(self.scale * self.scale * (query @ keys.T))


@mutant("logits in float16", (Modifiers, "logits"))
def _(original: Any) -> Any:
    return lambda self, query, keys: original(self, query, keys).to(torch.float16).to(query.dtype)


@mutant("no soft cap", (Modifiers, "cap"))
def _(original: Any) -> Any:
    return lambda self, logits: logits


@mutant("sink logits forgotten", (store, "check_modifiers"))
def _(original: Any) -> Any:
    def changed(*arguments: Any) -> None:
        original(*arguments)

    return changed


@mutant("sink logits of the first sequence for all", (store, "check_modifiers"))
def _(original: Any) -> Any:
    def changed(*arguments: Any) -> torch.Tensor | None:
        sinks = original(*arguments)
        return None if sinks is None else sinks[:1].expand_as(sinks)

    return changed


@mutant("values rounded to bfloat16", (HeadView, "values"))
def _(original: Any) -> Any:
    return lambda self, positions: original(self, positions).to(torch.bfloat16).to(original(self, positions).dtype)


@mutant("values that are not finite are absorbed", (HeadView, "values"), look="2.5")
def _(original: Any) -> Any:
    return lambda self, positions: original(self, positions).nan_to_num(0.0, 0.0, 0.0)


@mutant("values of unselected tokens are read", (block, "attend_tokens"), look="4.7")
def _(original: Any) -> Any:
    def changed(query: Any, at: Any, view: HeadView, *rest: Any) -> Attended:
        attended = original(query, at, view, *rest)
        return attended._replace(output=attended.output + 0 * view.values(view.cold_positions()).sum(dim=0))

    return changed


@mutant("no tail", (block, "tail"))
def _(original: Any) -> Any:
    return lambda *arguments: None


@mutant("tail counted twice", (block, "tail"))
def _(original: Any) -> Any:
    def changed(*arguments: Any) -> Pseudo:
        pseudo = original(*arguments)
        return Pseudo(torch.cat([pseudo.logits] * 2, dim=2), torch.cat([pseudo.values] * 2))

    return changed


TAIL = (block, "tail")
reworded("tail without the exact logits of candidates", TAIL, "torch.where(read,", "torch.where(read < 0,")
reworded("tail that reads the keys of all", TAIL, "torch.where(read,", "torch.where(read >= 0,")
reworded("tail of selected tokens too", TAIL, "left = cold[~torch.isin(cold, selected)]", "left = cold")
reworded(
    "tail of candidates alone",
    TAIL,
    "~torch.isin(cold, selected)",
    "~torch.isin(cold, selected) & torch.isin(cold, candidates)",
)
reworded("tail of unread tokens alone", TAIL, "~torch.isin(cold, selected)", "~torch.isin(cold, candidates)")
reworded(
    "tail by the mean of logits",
    TAIL,
    "torch.logsumexp(logits[:, :, pages == page], dim=2)",
    "logits[:, :, pages == page].mean(dim=2)",
)
reworded(
    "tail without the scale of estimates",
    TAIL,
    "view.estimates(query, left, modifiers.scale)",
    "view.estimates(query, left, 1.0)",
)
reworded("no soft cap for estimates", TAIL, "modifiers.cap(view", "(view")
reworded(
    "values of the first pages for the tail's",
    TAIL,
    "view.index.value[named]",
    "view.index.value[torch.arange(len(named))]",
)


@mutant("tail with the mean value of what is left", (block, "tail"))
def _(original: Any) -> Any:
    def changed(query: Any, view: HeadView, candidates: Any, selected: Any, modifiers: Any) -> Pseudo:
        pseudo = original(query, view, candidates, selected, modifiers)
        values, cold = pseudo.values.clone(), view.cold_positions()
        left = cold[~torch.isin(cold, selected)]
        for i, page in enumerate(torch.unique(view.pages(left))):
            values[i] += view.values(left[view.pages(left) == page]).mean(dim=0) - view.index.value[page]
        return pseudo._replace(values=values)

    return changed


@mutant("no shift of mean values", (tail, "value_shift"), look="5.4")
def _(original: Any) -> Any:
    return lambda *arguments: torch.zeros_like(original(*arguments))


@mutant("mean values shifted the other way", (tail, "value_shift"), look="5.4")
def _(original: Any) -> Any:
    return lambda *arguments: -original(*arguments)


reworded(
    "mean values of pages with candidates alone are shifted",
    TAIL,
    "[:, None, None] + shift",
    "[:, None, None] + shift * torch.isin(named, view.pages(candidates))[:, None, None, None]",
    look="5.4",
)


@mutant("shift without the fade of the heaviest", (tail, "SHIFT_POWER"), look="5.4")
def _(original: Any) -> Any:
    return 0.0


@mutant("shift that fades too slowly", (tail, "SHIFT_POWER"), look="5.4")
def _(original: Any) -> Any:
    return 2.0


@mutant("shift by the whole deviation", (tail, "SHIFT_WEIGHT"), look="5.4")
def _(original: Any) -> Any:
    return 1.0


@mutant("shift that fades by each query's own score", (tail, "value_shift"), look="5.4")
def _(original: Any) -> Any:
    def changed(query: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows = [
            [original(query[g : g + 1, t : t + 1], *rest) for t in range(query.shape[1])] for g in range(len(query))
        ]
        return torch.cat([torch.cat(row, dim=1) for row in rows])

    return changed


@mutant("shift without the soft cap", (tail, "value_shift"), look="5.4")
def _(original: Any) -> Any:
    def changed(query: Any, view: Any, selected: Any, modifiers: Modifiers) -> torch.Tensor:
        return original(query, view, selected, dataclasses.replace(modifiers, softcap=None))

    return changed


@mutant("suffix forgotten", (store, "query_blocks"))
def _(original: Any) -> Any:
    return lambda config, *rest: original(dataclasses.replace(config, exact_suffix_tokens=0), *rest)


@mutant("suffix in every call of a prompt", (store, "query_blocks"), look="7.6")
def _(original: Any) -> Any:
    return lambda config, length, queries, remaining: original(
        config, length, queries, None if queries > 1 else remaining
    )


@mutant("no suffix in a call that more of its prompt follows", (store, "query_blocks"), look="7.6")
def _(original: Any) -> Any:
    return lambda *rest: original(*rest[:3], rest[3] and 10**6)


@mutant("a prompt's chunk of one query is a decode step", (store, "query_blocks"), look="7.6")
def _(original: Any) -> Any:
    return lambda config, length, queries, remaining: original(
        config, length, queries, None if queries == 1 else remaining
    )


@mutant("blocks one query too long", (store, "query_blocks"))
def _(original: Any) -> Any:
    def changed(config: Any, *rest: Any) -> Any:
        return original(dataclasses.replace(config, query_block_tokens=config.query_block_tokens + 1), *rest)

    return changed


@mutant("decode uses the window", (store, "query_blocks"))
def _(original: Any) -> Any:
    def changed(config: Any, length: int, queries: int, remaining: int | None) -> Any:
        if queries == 1 and config.prefill == "window":
            return [QueryBlock("window", length - 1, length)]
        return original(config, length, queries, remaining)

    return changed


@mutant("window retrieves", (store, "query_blocks"))
def _(original: Any) -> Any:
    def changed(config: Any, *rest: Any) -> Any:
        return [
            dataclasses.replace(b, mode="retrieve" if b.mode == "window" else b.mode) for b in original(config, *rest)
        ]

    return changed
