"""Blocks of every shape: stores of random tokens, and what is asked of their cold pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from fast_helpers import state_of
from hypothesis import strategies as st
from kiv_fast import FastPool
from kiv_fast.call import view_of
from kiv_fast.ops.arguments import Queries
from kiv_reference import KIVConfig

if TYPE_CHECKING:
    from kiv_fast.retrieval.candidates import View
    from kiv_fast.store import FastStore

    Block: TypeAlias = tuple[FastStore, View, Queries, int, int]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@st.composite
def blocks(draw: st.DrawFn, whole: bool = False) -> Block:
    """Return a store, what a block sees of its cold pages, its queries, and how many candidates and selected tokens.

    With `whole` scores are exact in float32 (SPEC 11.1), and there are many ties.
    """
    size = draw(st.sampled_from([16, 32, 64, 128] if whole else [3, 15, 16, 17, 31, 33, 48, 70]))
    heads, groups, width = (draw(st.integers(1, most)) for most in (3, 9, 40))
    wide = draw(st.integers(1, 37) | st.sampled_from([64, 80, 144]))  # the latter in several columns of vectors
    dtype = draw(st.sampled_from(DTYPES))
    pages, hot, seed = draw(st.integers(1, 11)), draw(st.integers(0, 300)), draw(st.integers(0, 1 << 20))
    sinks, queries = draw(st.integers(0, 3)), draw(st.sampled_from([1, 1, 2, 5]))
    group = "max" if whole else draw(st.sampled_from(["exp_sum", "max"]))
    sizes: dict[str, Any] = {
        "sink_tokens": sinks,
        "page_tokens": size,
        "index_channels": draw(st.integers(1, 64)),
        "group": group,
    }
    store = FastPool(
        KIVConfig(hot_tokens=hot, prefill="window", candidate_tokens=1, retrieve_tokens=1, **sizes), ops="torch"
    ).layer_store()
    generator, length = torch.Generator().manual_seed(seed), sinks + pages * size + hot + queries
    key, value, query = (
        torch.randn(1, n, length, d, generator=generator)
        for n, d in ((heads, width), (heads, wide), (heads * groups, width))
    )
    if whole:
        key, query = (2 * key).round().clamp(-4, 4), query.round()
    if draw(st.booleans()):
        at = torch.randint(0, value.numel(), (3,), generator=generator)
        value.view(-1)[at] = torch.tensor([torch.inf, -torch.inf, torch.nan])[: len(at)]
    valid = None
    if not whole and draw(st.booleans()):
        valid = torch.rand(1, length, generator=generator) < 0.7
        valid[:, sinks], valid[:, -queries:] = True, True
    key, value, query = key.to(dtype), value.to(dtype), query.to(dtype)
    store.append(key, value, valid)
    store.attend(query, scale=1.0)
    view = view_of(state_of(store), 0, pages, length)
    scale = 0.25 if whole else draw(st.sampled_from([0.05, 0.3, 1.0]))
    softcap, learned = draw(st.sampled_from([None, None, 2.0])), None
    if draw(st.booleans()):
        learned = torch.randn(heads, groups, queries, generator=generator)
    asked = query[0, :, -queries:].float().unflatten(0, (heads, groups))
    among = None
    if queries > 1 and draw(st.booleans()):
        among = torch.arange(queries) % 2 == 0
        asked, learned = asked[:, :, among], None if learned is None else learned[:, :, among]
    asked = Queries(asked, length - queries, among, scale, softcap, learned)
    return store, view, asked, min(draw(st.integers(1, 200)), view.tokens), draw(st.integers(1, 220))
