"""The compiled operations against those in PyTorch, on blocks of every shape, with the instructions of this machine."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kiv_fast import FastPool
from kiv_fast.call import _view
from kiv_fast.ops import CpuOps, TorchOps, library
from kiv_fast.ops.arguments import Queries, Rows, Tile
from kiv_fast.ops.ranking import group_scores
from kiv_reference import KIVConfig
from kiv_reference.errors import KIVUnsupportedError, KIVUsageError

compiled = pytest.mark.skipif(library.load() is None, reason="kiv-fast was built without a C compiler")
LEVELS = range(1 + (library.load() or SimpleNamespace(level=0)).level)
PLAIN = TorchOps(1 << 20, 1 << 24)
ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}
"""Of outputs, in units of the largest value."""


class Wide:
    """Estimates and mean values of float32 in float64: what is computed from them has no rounding to speak of."""

    def __init__(self, estimates):
        index = estimates.index
        mean, ids = SimpleNamespace(tensor=index.records(index.mean).double()), np.arange(index.pages, dtype=np.int32)
        self.index = replace(index, mean=mean, ids=ids, whole=True)
        self._parts = [(chunk, part.double()) for chunk, part in estimates.all()]

    def all(self):
        return iter(self._parts)


@st.composite
def blocks(draw, whole=False):
    """A store, what a block sees of its cold pages, the queries of a block, and how many candidates and selected tokens.

    With `whole` scores are exact in float32 (SPEC 11.1), and there are many ties.
    """
    size = draw(st.sampled_from([16, 32, 64, 128] if whole else [3, 15, 16, 17, 31, 33, 48, 70]))
    heads, groups, width, wide = (draw(st.integers(1, most)) for most in (3, 9, 40, 37))
    dtype = draw(st.sampled_from(list(ROUNDING)))
    pages, hot, seed = draw(st.integers(1, 11)), draw(st.integers(0, 300)), draw(st.integers(0, 1 << 20))
    sinks, queries = draw(st.integers(0, 3)), draw(st.sampled_from([1, 1, 2, 5]))
    group = "max" if whole else draw(st.sampled_from(["exp_sum", "max"]))
    sizes = {"sink_tokens": sinks, "page_tokens": size, "index_channels": draw(st.integers(1, 64)), "group": group}
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
    view = _view(store.state, 0, pages, length)
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


def rows(view, in_place):
    """Keys and values of the cold tokens, as they are handed to the compiled operations."""
    arena = view.cold.arena
    return tuple(
        Rows(part.gather, arena.table(values) if in_place else None)
        for part, values in ((view.keys, False), (view.values, True))
    )


def best(scores, chosen, exact):
    """Check that `chosen` int [H, n] are the best of [H, I], ascending; up to rounding unless `exact`."""
    chosen = chosen.long()
    assert bool((chosen[:, 1:] > chosen[:, :-1]).all())
    if exact:
        right = scores.sort(dim=1, descending=True, stable=True).indices[:, : chosen.shape[1]].sort(dim=1).values
        assert torch.equal(chosen, right)
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, chosen, True)
    least = scores.masked_fill(~kept, torch.inf).amin(dim=1)
    most = scores.masked_fill(kept, -torch.inf).amax(dim=1)
    assert bool((least > -torch.inf).all()), "an invalid token"
    assert bool((most - least <= 1e-4 * (1 + least.abs())).all())


def ranked(scores, group):
    """Group scores, whose differences are those of the scores, if they are not too small for float32."""
    return scores if group == "max" else scores.log().clamp_(min=-80.0)


def check(level, kept, in_place, block, exact=False):
    """Each operation's result against PyTorch's, given the same."""
    _store, view, queries, candidates, selected = block
    ops, group = CpuOps(library.Library(library.library_path(), level), kept), view.index.group
    keys, values = rows(view, in_place)
    plain = PLAIN.estimate(view.index, queries, view.tokens)
    scores = ranked(plain.scores, group)
    scores = scores if view.index.unseen is None else scores.masked_fill(view.index.unseen, -torch.inf)
    learned = None if queries.sink_logits is None else queries.sink_logits.double()
    double = replace(queries, query=queries.query.double(), sink_logits=learned)
    scanned = ops.estimate(view.index, queries, min(2 * candidates, view.tokens))
    found = ops.select(scanned, keys, candidates, selected)
    late, wide = list(range(found.at.shape[0]))[::2], min(2 * candidates, view.tokens)
    for widened in (False, True):
        if widened:
            found = ops.widen(scanned, keys, found._replace(late=late), wide)
        taken = list(range(found.at.shape[0])) if not widened else late
        for head in taken:
            best(scores[head : head + 1], found.candidates[head : head + 1], exact)
        at, none = found.candidates.long(), found.candidates < 0
        raw = PLAIN.scores(double, view.keys, at).masked_fill(none[:, None], -torch.inf)
        torch.testing.assert_close(found.scores.double(), raw, rtol=1e-5, atol=1e-5)
        best(ranked(group_scores(raw, group), group), found.chosen, exact)
        if not widened:
            mine = PLAIN.select(plain, view.keys, candidates, selected)
            assert found.keys == mine.keys
            assert not exact or found.late == mine.late
        attended(ops, (scanned, found, values), (Wide(plain), double, raw), view, queries)
    assert found.keys == candidates * found.at.shape[0] + len(late) * (wide - candidates)


def attended(ops, retrieved, exactly, view, queries):
    """Check outputs and masses with a tail and without against those in float64."""
    (scanned, found, values), (estimates, double, raw) = retrieved, exactly
    exact = found._replace(at=found.candidates.long(), raw=raw, chosen=found.chosen.long())
    finite = view.finite and view.row.finite >= view.index.pages
    heads, groups, count, _ = queries.query.shape
    for tail in (False, True):
        out = torch.empty(heads * groups, count, view.cold.shape.value_width, dtype=view.cold.shape.dtype)
        right = out.double()
        mine = ops.attend(queries, view.always, finite, (scanned, found, values), tail, out)
        other = PLAIN.attend(double, view.always, finite, (estimates, exact, view.values), tail, right)
        close = ROUNDING[out.dtype] * (1 + float(right.nan_to_num(0.0, 0.0, 0.0).abs().max()))
        torch.testing.assert_close(out.double(), right, rtol=0, atol=close, equal_nan=True)
        for share, its in zip(mine, other, strict=True):
            torch.testing.assert_close(share.double(), its, rtol=0, atol=2e-5)


@compiled
@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None, derandomize=True, max_examples=60)
@given(block=blocks(), kept=st.sampled_from([0, 1 << 24]), in_place=st.booleans())
def test_operations(level, block, kept, in_place):
    check(level, kept, in_place, block)


@compiled
@pytest.mark.parametrize("level", LEVELS)
@settings(deadline=None, derandomize=True, max_examples=40)
@given(block=blocks(whole=True), kept=st.sampled_from([0, 1 << 24]), in_place=st.booleans())
def test_of_equal_scores_the_first_are_taken(level, block, kept, in_place):
    check(level, kept, in_place, block, exact=True)


@compiled
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("group", ["exp_sum", "max"])
def test_scores_that_are_no_numbers_are_taken_once(level, group):
    """Scores beyond float32 are infinite, and their differences NaN: what is chosen are tokens all the same."""
    sizes = {"hot_tokens": 0, "sink_tokens": 0, "page_tokens": 20, "candidate_tokens": 1, "retrieve_tokens": 1}
    store = FastPool(KIVConfig(prefill="window", group=group, **sizes), ops="torch").layer_store()
    sign = torch.randn(1, 2, 201, 8, generator=torch.Generator().manual_seed(1)).sign()
    store.append(3e38 * sign, sign)
    store.attend(3e38 * sign, scale=1.0)
    view = _view(store.state, 0, 10, 201)
    queries = Queries(3e38 * sign[0, :, None, -1:], 200, None, 1.0, None, None)
    for kept, (keys, _) in ((0, rows(view, True)), (1 << 24, rows(view, False))):
        ops = CpuOps(library.Library(library.library_path(), level), kept)
        found = ops.select(ops.estimate(view.index, queries, 100), keys, 50, 30)
        for taken, most in ((found.candidates, 200), (found.chosen, 50)):
            assert bool((taken[:, 1:] > taken[:, :-1]).all())
            assert bool(((taken >= 0) & (taken < most)).all())


@compiled
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", list(ROUNDING))
def test_outputs_are_rounded_to_nearest(level, dtype):
    """The mean of two values that weigh the same, from the smallest to the largest numbers."""
    generator = torch.Generator().manual_seed(1)
    most = 15 if dtype == torch.float16 else 100
    value = torch.randn(2, 4000, generator=generator) * 2.0 ** torch.randint(
        -most - 9, most, (4000,), generator=generator
    )
    value = value.to(dtype)
    tile = Tile(torch.ones(1, 1, 2, 3, dtype=dtype), value[None, None], 0, 0, 2, 0, None)
    ops, out = CpuOps(library.Library(library.library_path(), level), 0), torch.empty(1, 1, 4000, dtype=dtype)
    ops.attend(Queries(torch.zeros(1, 1, 1, 3), 1, None, 1.0, None, None), [tile], True, None, False, out)
    assert torch.equal(out[0, 0], value.float().mean(dim=0).to(dtype))


@compiled
def test_their_name_stands_for_them_alone():
    store = FastPool(KIVConfig(), ops="cpu").layer_store()
    numbers = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    with pytest.raises(KIVUnsupportedError, match="float64 on cpu, 4 channels"):
        store.append(numbers, numbers)


def test_unknown_operations_are_refused():
    with pytest.raises(KIVUsageError, match="'gpu'"):
        FastPool(KIVConfig(), ops="gpu")


@pytest.mark.parametrize(("content", "why"), [(None, "built without a C compiler"), (b"text", "does not load")])
def test_without_a_library_the_reason_is_told(monkeypatch, tmp_path, content, why):
    path = tmp_path / "libkiv.so"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("KIV_LIBRARY", str(path))
    library.load.cache_clear()
    try:
        with pytest.raises(KIVUnsupportedError, match=why):
            FastPool(KIVConfig(), ops="cpu")
        assert FastPool(KIVConfig()).layer_store() is not None
    finally:
        monkeypatch.undo()
        library.load.cache_clear()
