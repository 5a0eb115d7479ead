"""The index of pages: codes bit for bit those of the reference, errors never rounded down, the queries sampled."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import SCALE, draw, feed, state_of
from faulty_disk import Faulty
from kiv_fast import FastPool, Tuning
from kiv_fast.device.transfer import Transfer
from kiv_fast.index.index import code_pages
from kiv_fast.index.samples import Samples
from kiv_fast.shape import Shape
from kiv_reference.errors import KIVStorageError
from kiv_reference.index import index_page

if TYPE_CHECKING:
    from pathlib import Path

    from kiv_fast.store import FastStore
    from kiv_reference import KIVConfig


def pages(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return five pages of 24 tokens, two heads and ten channels, odd ones among them; values, validity, weights."""
    generator = torch.Generator().manual_seed(seed)
    key = torch.randn(5, 2, 24, 10, generator=generator, dtype=dtype) * 10 ** torch.randint(
        -3, 4, (5, 2, 1, 10), generator=generator
    ).to(dtype)
    key[:, :, :, 3] += 200  # as the key biases of some models
    key[:, :, :, 4] = 1.5  # no range: step 0
    key[:, :, :, 5] = key[:, :, :, 6]  # the same importance
    key[:, :, :, 7] = key[:, :, :, 7].round()
    valid = torch.rand(5, 24, generator=generator) < torch.tensor([1.0, 0.6, 0.1, 0.0, 0.5])[:, None]
    weights = torch.rand(5, 2, 10, generator=generator, dtype=dtype)
    weights[:, :, 5] = weights[:, :, 6]
    return key, torch.randn(5, 2, 24, 3, generator=generator, dtype=dtype), valid, weights


def unpacked(coded: Any, tokens: int = 24) -> torch.Tensor:
    """Return codes ``[n, H, P, 2 W]``, one channel after the other."""
    packed = coded.codes.transpose(3, 4).contiguous().view(torch.uint8).flatten(2, 3)[:, :, :tokens]
    return torch.cat([packed & 15, packed >> 4], dim=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 2, 5, 8, 10])
@pytest.mark.parametrize("padded", [False, True])
def test_codes_are_those_of_the_reference(channels: int, padded: bool, dtype: torch.dtype) -> None:
    for seed in range(10):
        key, value, valid, weights = pages(seed, dtype)
        key[:, :, :, 9] *= 1e-30
        coded = code_pages(key, value, valid if padded else None, weights, channels)
        for page in range(5):
            seen = valid[page] if padded else torch.ones(24, dtype=torch.bool)
            if not seen.any():
                continue
            right = index_page(key[page], value[page], seen, weights[page], channels)
            order = right.channels.argsort(dim=1)
            assert torch.equal(coded.channels[page, :, :channels].long(), right.channels.gather(1, order))
            at = order[:, None].expand(-1, int(seen.sum()), -1)
            assert torch.equal(unpacked(coded)[page][:, seen, :channels], right.codes[:, seen].gather(2, at))
            assert torch.equal(coded.step[page, :, :channels], right.step.gather(1, order))
            torch.testing.assert_close(coded.value[page], right.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_key_is_further_from_its_approximate_key_than_is_noted(dtype: torch.dtype) -> None:
    for seed in range(20):
        key, value, valid, weights = pages(seed, dtype)
        coded = code_pages(key, value, valid, weights, 5)
        at = coded.channels.long()[:, :, None].expand(-1, -1, 24, -1)
        codes = unpacked(coded).double() * coded.step.double()[:, :, None]
        near = coded.base.double()[:, :, None].repeat(1, 1, 24, 1).scatter_add_(3, at, codes)
        away = (key.double() - near).abs().masked_fill(~valid[:, None, :, None], 0).amax(dim=2)
        assert bool((away <= coded.error.double()).all())
        assert bool((coded.error.double() <= away + 2e-6 * (away + coded.base.abs())).all())


def tables(store: FastStore) -> list[torch.Tensor]:
    """Return what is known of a store's pages, in the order of the row."""
    cold = state_of(store).cold
    index = cold.page_index(state_of(store).rows[0], state_of(store).pages, None)
    assert cold.index is not None
    return [index.records(table).clone() for table in (*cold.index.tables, cold.index.error)]


@pytest.mark.parametrize("prefill", ["exact", "retrieve"])
@pytest.mark.parametrize("chunks", [[400], [1] * 400, [63, 1, 64, 65, 7, 200], [300, *[1] * 100]])
def test_the_index_is_a_function_of_the_tokens(config: KIVConfig, chunks: list[int], prefill: str) -> None:
    config = replace(config, prefill=prefill, query_block_tokens=8)
    data = draw(1, 400)
    expected = FastPool(config).layer_store()
    feed(expected, data, [130, 270])
    store = FastPool(config, tuning=Tuning(index_tokens=8)).layer_store()
    feed(store, data, chunks)
    channels = {tuple(page.flatten().tolist()) for page in tables(store)[1]}
    assert len(channels) > 10
    for mine, right in zip(tables(store)[:4], tables(expected)[:4], strict=True):
        assert torch.equal(mine, right)


def test_the_index_after_a_crop_is_that_of_the_tokens(config: KIVConfig) -> None:
    data, other = draw(1, 300), draw(2, 300)
    store = FastPool(config).layer_store()
    feed(store, data, [300])
    store.crop(170)
    rest = tuple(part[:, :, 170:] for part in other)
    feed(store, rest, [130])
    fresh = FastPool(config).layer_store()
    feed(
        fresh, tuple(torch.cat([a[:, :, :170], b[:, :, 170:]], dim=2) for a, b in zip(data, other, strict=True)), [300]
    )
    for mine, right in zip(tables(store), tables(fresh), strict=True):
        assert torch.equal(mine, right)


def samples(length: int, seen: Any, batch: int = 1) -> Samples:
    """Sample a one-channel store, whose query at position p is p + 1, attended in calls of 64 where `seen`."""
    found, shape = Samples(Shape(batch, 1, 1, 1, torch.float32, torch.device("cpu"))), []
    for first in range(0, length, 64):
        query = -torch.arange(first + 1.0, first + 65).view(1, 1, 1, 64, 1).expand(batch, -1, 2, -1, -1)
        if first // 64 in seen:
            found.take(query, first + 64, None, Transfer())
            shape.append(first)
    return found


def test_the_last_sixteen_multiples_count() -> None:
    found = samples(64 * 40, seen={0, 1, 5, 20, 38, 39})
    weights = found.weights(0, [63, 64, 127, 128, 320, 383, 384, 64 * 17, 64 * 18, 64 * 22, 64 * 23, 64 * 37, 64 * 40])
    assert weights.flatten().tolist() == [1, 64, 64, 128, 128, 128, 384, 384, 384, 1344, 1344, 1, 2560]


def test_a_padded_position_is_not_sampled() -> None:
    found = Samples(Shape(2, 1, 1, 1, torch.float32, torch.device("cpu")))
    valid = torch.ones(2, 64, dtype=torch.bool)
    valid[1, 63] = False
    found.take(torch.full((2, 1, 1, 64, 1), 7.0), 64, valid, Transfer())
    assert [found.weights(row, [64]).item() for row in (0, 1)] == [7, 1]


@pytest.mark.parametrize(("stop", "share"), [(192, 0), (290, 0), (290, 0.3), (290, 0.7), (290, 1)])
def test_an_attend_that_fails_samples_nothing(config: KIVConfig, tmp_path: Path, stop: int, share: float) -> None:
    """Another, with other queries, is the first then: also for the pages that blocks before the failure made cold."""
    data, other = draw(1, 400), draw(2, 400)
    io = Faulty()
    config = replace(config, ram_bytes=40_000, spill_dir=tmp_path, prefill="retrieve", query_block_tokens=8)
    config = replace(config, exact_suffix_tokens=0)
    outcomes, reads = [], 0
    for failing in (False, True):
        pool = FastPool(config, io)
        store = pool.layer_store()
        feed(store, tuple(part[:, :, :191] for part in data), [*[32] * 5, 31])
        store.append(*(part[:, :, 191:stop] for part in data[:2]))
        if failing:
            assert store.tokens().cold_disk > 0
            before, pages = pool.memory().device, state_of(store).pages
            io.method, io.at = "read", io.calls["read"] + max(1, int(share * reads))
            with pytest.raises(KIVStorageError):
                store.attend(other[2][:, :, 191:stop], scale=SCALE)
            assert (state_of(store).pages, pool.memory().device) == (pages, before)
        reads = io.calls["read"]
        outcomes.append(store.attend(data[2][:, :, 191:stop], scale=SCALE))
        reads = io.calls["read"] - reads
        feed(store, tuple(part[:, :, stop:] for part in data), [400 - stop])
        outcomes.append(tables(store))
    assert torch.equal(outcomes[0], outcomes[2])
    assert all(torch.equal(mine, right) for mine, right in zip(outcomes[1], outcomes[3], strict=True))


@pytest.mark.parametrize("group", ["exp_sum", "max"])
def test_estimates_that_are_computed_anew_are_the_same(config: KIVConfig, group: str) -> None:
    data, chunks = draw(4, 300), [280, *[1] * 20]
    config = replace(config, group=group)
    outputs = []
    for kept in (1 << 20, 0):
        pool = FastPool(config, tuning=Tuning(chunk_bytes=4096, kept_bytes=kept))
        store = pool.layer_store()
        outputs.append(feed(store, data, chunks))
    assert all(torch.equal(output, outputs[0]) for output in outputs[1:])
