"""Models that change keys and values between the cache and attention: how to know them, and what a store keeps.

An adapter is a function from what a layer's `update` got and what attention got to an `Adapted`, or to None if the one
is not the other changed in the adapter's way. That is decided by numbers, on a sample of the new tokens, in every
call: never by the name of a class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch

from ..guards.parties import Staged


class Adapted(NamedTuple):
    """How one attention call is put to the store.

    Attributes
    ----------
    states : Staged
        What the store keeps of the new tokens.
    query : function
        From the model's query [B, HQ, TQ, D] to the store's.
    output : function
        From the store's output [B, HQ, TQ, DV] to the model's.
    """

    states: Staged
    query: Callable[[torch.Tensor], torch.Tensor]
    output: Callable[[torch.Tensor], torch.Tensor]


Adapter = Callable[[torch.nn.Module, Staged, torch.Tensor, torch.Tensor], "Adapted | None"]


def adapt(
    adapter: Adapter | None, module: torch.nn.Module, staged: Staged, key: torch.Tensor, value: torch.Tensor
) -> tuple[Adapter, Adapted] | None:
    """Return the first adapter that explains `key` and `value`, of all or of the one that the layer has used before."""
    if key.ndim != 4 or key.shape[2] != staged.key.shape[2] or value.shape[2] != key.shape[2]:
        return None
    for candidate in ADAPTERS if adapter is None else (adapter,):
        adapted = candidate(module, staged, key, value)
        if adapted is not None:
            return candidate, adapted
    return None


def latent(module: torch.nn.Module, staged: Staged, key: torch.Tensor, value: torch.Tensor) -> Adapted | None:
    """Adapt multi-head latent attention: the cache gets a latent for all heads, ``module.expand_kv`` makes K and V.

    The store keeps the latents. Expansion is linear, so a query is brought into the latent space instead, and the
    output out of it: scores and sums are the same, and a token takes as little memory as in the model's design.
    """
    expand = getattr(module, "expand_kv", None)
    if expand is None or staged.key.shape[1] != 1 or staged.value.shape[1] != 1:
        return None
    main, rotary = staged.key.shape[-1], staged.value.shape[-1]
    ones, zeros = torch.eye(main + rotary, dtype=key.dtype, device=key.device), key.new_zeros(1, 1, main, rotary)
    key_main, value_main = expand(ones[None, None, :main, :main].contiguous(), zeros)
    zeros = key.new_zeros(1, 1, rotary, main)
    key_rotary, value_rotary = expand(zeros, ones[None, None, main:, main:].contiguous())
    to_key = torch.cat([key_main, key_rotary], dim=2)[0]  # [H, main + rotary, D]
    to_value = value_main[0]  # [H, main, DV]
    if to_key.shape[::2] != key.shape[1::2] or bool(value_rotary.any()):
        return None
    sample = _sample(staged.key)
    both = torch.cat([staged.key, staged.value], dim=-1)
    if not _close(both[:, :, sample] @ to_key, key[:, :, sample]):
        return None
    if not _close(staged.key[:, :, sample] @ to_value, value[:, :, sample]):
        return None

    def into_latents(query: torch.Tensor) -> torch.Tensor:
        return query @ _for_heads(to_key, query).transpose(-1, -2)

    def out_of_latents(output: torch.Tensor) -> torch.Tensor:
        return output @ _for_heads(to_value, output)

    return Adapted(Staged(both, staged.key), into_latents, out_of_latents)


def halves(module: torch.nn.Module, staged: Staged, key: torch.Tensor, value: torch.Tensor) -> Adapted | None:
    """Adapt differential attention: two calls with the same keys, each with one half of the value heads, taken twice.

    The store keeps, for each key head, the value heads of both calls side by side.
    """
    if staged.value.shape[1] % 2 or key.shape != staged.key.shape or value.shape != staged.value.shape:
        return None
    parts = [half.repeat(1, 2, 1, 1) for half in staged.value.chunk(2, dim=1)]
    sample = _sample(key)
    if not torch.equal(key[:, :, sample], staged.key[:, :, sample]):
        return None
    for which, part in enumerate(parts):
        if torch.equal(value[:, :, sample], part[:, :, sample]):

            def this_half(output: torch.Tensor, which: int = which) -> torch.Tensor:
                return output.chunk(2, dim=-1)[which]

            return Adapted(Staged(staged.key, torch.cat(parts, dim=-1)), _unchanged, this_half)
    return None


def repeated(module: torch.nn.Module, staged: Staged, key: torch.Tensor, value: torch.Tensor) -> Adapted | None:
    """Adapt KV heads repeated in a row, 0 1 0 1: the store keeps each head once, the query heads are sorted."""
    heads = staged.key.shape[1]
    times, rest = divmod(key.shape[1], heads)
    if times < 2 or rest or value.shape[1] != key.shape[1] or staged.value.shape[1] != heads:
        return None
    sample = _sample(key)
    for got, kept in ((key, staged.key), (value, staged.value)):
        if not torch.equal(got[:, :, sample], kept[:, :, sample].repeat(1, times, 1, 1)):
            return None

    def by_kv_head(query: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", query.unflatten(1, (times, heads, -1)).transpose(1, 2)).flatten(1, 3)

    def as_called(output: torch.Tensor) -> torch.Tensor:
        return cast("torch.Tensor", output.unflatten(1, (heads, times, -1)).transpose(1, 2)).flatten(1, 3)

    return Adapted(staged, by_kv_head, as_called)


def interleaved(module: torch.nn.Module, staged: Staged, key: torch.Tensor, value: torch.Tensor) -> Adapted | None:
    """Adapt KV heads repeated one by one, 0 0 1 1: the store keeps each head once, as groups of query heads use it."""
    heads = staged.key.shape[1]
    times, rest = divmod(key.shape[1], heads)
    if times < 2 or rest or value.shape[1] != key.shape[1] or staged.value.shape[1] != heads:
        return None
    sample = _sample(key)
    for got, kept in ((key, staged.key), (value, staged.value)):
        if not torch.equal(got[:, :, sample], kept[:, :, sample].repeat_interleave(times, dim=1)):
            return None
    return Adapted(staged, _unchanged, _unchanged)


ADAPTERS: tuple[Adapter, ...] = (latent, halves, repeated, interleaved)
"""Every way of changing keys and values that is understood."""


def _unchanged(states: torch.Tensor) -> torch.Tensor:
    return states


def _sample(states: torch.Tensor) -> list[int]:
    """Return the first, middle and last of the new tokens."""
    last = states.shape[2] - 1
    return sorted({0, last // 2, last})


def _for_heads(matrices: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Return matrices [H, ...] for states of HQ heads, HQ a multiple of H."""
    return matrices.repeat_interleave(states.shape[1] // matrices.shape[0], dim=0)


def _close(got: torch.Tensor, right: torch.Tensor) -> bool:
    """Tell whether all is equal but for a few roundings to the dtype, and a sum in float32 in another order."""
    if got.shape != right.shape:
        return False
    relative = 4 * torch.finfo(right.dtype).eps + 64 * torch.finfo(torch.float32).eps
    return bool((got - right).abs().max() <= relative * right.abs().max())
