"""The model of time of ``kiv plan``: against sums made by hand, and as context, bandwidth and budgets change."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from kiv_hf import KIVConfig
from kiv_hf.cli.plan.cards import CARDS, Card, find_card
from kiv_hf.cli.plan.times import (
    CHOOSE_S,
    DISK_WAIT_S,
    Moved,
    Work,
    kiv_step,
    plain_step,
    prefill_s,
    step_time,
    sum_of_seen,
)
from kiv_hf.cli.sizes.layers import LayerSizes
from kiv_hf.cli.sizes.model import ModelSizes
from kiv_hf.cli.sizes.weights import Weights

K = 1024
FULL = LayerSizes(True, 32, 8, 128, 128, 8 * 256)
SLIDING = LayerSizes(False, 32, 8, 128, 128, 8 * 256, window=1023)
WEIGHTS = Weights(0, 10**9, 0, 1e9, 1e9)
ONE = Card("one", (), 0, 1e12 / 0.85, 1e10, 2e12)
"""A billion bytes a millisecond of its own memory, ten million over PCIe, a billion operations."""


def work(tokens: int, **more: object) -> Work:
    made = Work(ModelSizes((FULL,) * 32, WEIGHTS, 4096, 14336, ""), 2e9, torch.bfloat16, KIVConfig(), tokens)
    return replace(made, **more)  # pyright: ignore[reportArgumentType]


def test_a_step_is_counted_by_hand() -> None:
    moved = kiv_step(work(128 * K))
    pages = (128 * K - 2048 - 4) // 512
    cold = 512 * pages
    index = 8 * pages * (512 * 32 + 64 * 6 + 4 * 256)
    estimates = (3 * 32 + 2 * 8) * 4 * cold
    # At 128K an eighth of a half of the heads ask for as many again.
    keys, values = 8 * 4096 * (1 + 0.5 / 8) * 256, 8 * 1024 * 256
    hot = 8 * (128 * K - cold) * 512
    assert moved.vram == pytest.approx(2e9 + 32 * (index + estimates + hot + 0.88 * keys + 0.7 * values))
    assert moved.host == pytest.approx(32 * (0.12 * keys + 0.3 * values))
    assert (moved.disk, moved.launches, moved.calls) == (0, 32 * (40 + 10 - 2), 32 * (40 + 4 - 2))
    assert moved.waits_s == pytest.approx(32 * CHOOSE_S)
    without = kiv_step(work(128 * K, kept_rows=False))
    assert without.host == pytest.approx(32 * (keys + values))
    spilled = kiv_step(work(128 * K, disk_share=0.25))
    # A row takes as long as a block of the disk, and nine of ten are in RAM from the steps before.
    blocks = 8 * (0.12 * 4096 * (1 + 0.5 / 8) + 0.3 * 1024) * 4096
    assert spilled.disk == pytest.approx(32 * 0.1 * 0.25 * blocks)
    assert spilled.waits_s == pytest.approx(32 * (CHOOSE_S + DISK_WAIT_S))


def test_short_rows_take_as_long_as_a_burst() -> None:
    narrow = LayerSizes(True, 9, 3, 64, 64, 3 * 128)
    moved = kiv_step(replace(work(1 << 20, kept_rows=False), sizes=ModelSizes((narrow,), WEIGHTS, 576, 1536, "")))
    assert moved.host == 3 * (4096 * 1.5 + 1024) * 256


def test_few_cold_tokens_are_all_read() -> None:
    """SPEC 4.1: 4,096 tokens of 8 heads, keys and values."""
    moved = kiv_step(work(4096 + 2048 + 4, kept_rows=False))
    assert moved.host == 32 * 8 * 4096 * 512
    assert moved.waits_s == 0
    # The device keeps 8,192 keys and 2,048 values.
    assert kiv_step(work(4096 + 2048 + 4)).host == 32 * 8 * 2048 * 256
    hot = kiv_step(work(2048))
    assert hot == plain_step(work(2048))


def test_exact_mode_reads_everything_over_pcie() -> None:
    moved = kiv_step(work(128 * K, config=KIVConfig(retrieve_tokens=None)))
    assert moved.host == 32 * 8 * 512 * (512 * ((128 * K - 2052) // 512))


def test_a_plain_step_reads_weights_and_cache() -> None:
    sizes = ModelSizes((FULL, SLIDING), WEIGHTS, 4096, 14336, "")
    moved = plain_step(replace(work(128 * K), sizes=sizes))
    assert moved == Moved(vram=2e9 + (128 * K + 1023) * 8 * 512, launches=80, calls=80)


def test_seconds_are_bytes_over_bandwidth() -> None:
    assert step_time(Moved(vram=3e9), ONE).graph == pytest.approx(3e-3)
    assert step_time(Moved(host=2e7), ONE).graph == pytest.approx(2e-3)
    assert step_time(Moved(disk=4e6), ONE).graph == pytest.approx(2e-3)
    assert step_time(Moved(waits_s=1e-3), ONE).graph == pytest.approx(1e-3)
    many = step_time(Moved(vram=3e9, launches=1000, calls=600), ONE)
    assert (many.graph, many.eager) == (pytest.approx(5e-3), pytest.approx(9e-3))
    assert step_time(Moved(vram=3e10, launches=1000, calls=600), ONE).eager == pytest.approx(32e-3)


def test_a_prompt_takes_what_takes_longest() -> None:
    """Of 64K tokens in chunks of 8K, with arithmetic, PCIe or the disk slow in turn."""
    tokens, chunk = 64 * K, 8 * K
    operations = 2e9 * tokens + 32 * 2 * 32 * 256 * tokens * (tokens + 1) // 2
    slow = replace(ONE, products=2e9)
    assert prefill_s(work(tokens), chunk, slow) == pytest.approx(operations / 1e9)
    token_bytes = 32 * 8 * 512
    cold = sum((start - 2052) // 512 * 512 for start in range(chunk, tokens, chunk))
    far = replace(ONE, host=1e6, products=1e18)
    assert prefill_s(work(tokens), chunk, far) == pytest.approx(token_bytes * (cold + tokens) / 1e6)
    spilled = work(tokens, disk_share=0.5)
    disk = prefill_s(spilled, chunk, replace(ONE, host=1e18, vram=1e18, products=1e18))
    assert disk == pytest.approx(token_bytes * cold * 0.5 / 2e9, rel=1e-3)
    weights = prefill_s(work(2048), 128, replace(ONE, products=1e18))
    assert weights == pytest.approx((16 * 2e9 + token_bytes * 2048) / 1e12, rel=1e-3)


@pytest.mark.parametrize(
    ("done", "n", "window"), [(0, 5, None), (7, 5, None), (0, 9, 4), (2, 9, 4), (6, 3, 4), (1, 2, 4)]
)
def test_pairs_that_see_each_other(done: int, n: int, window: int | None) -> None:
    seen = sum(min(position + 1, window or 10**9) for position in range(done, done + n))
    assert sum_of_seen(done, n, window) == seen


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_more_context_takes_longer(card: Card) -> None:
    contexts = [2 * K, 4 * K, 16 * K, 32 * K, 128 * K, 512 * K, 1024 * K]
    for step in (kiv_step, plain_step):
        times = [step_time(step(work(tokens)), card) for tokens in contexts]
        assert all(a.graph < b.graph and a.eager <= b.eager for a, b in pairwise(times))
    prompts = [prefill_s(work(tokens), 2 * K, card) for tokens in contexts]
    assert prompts == sorted(set(prompts))
    # A plain cache's step grows with its bytes, KIV's with its codes: at a million tokens it is several times faster.
    assert 3 * step_time(kiv_step(work(1024 * K)), card).graph < step_time(plain_step(work(1024 * K)), card).graph


@pytest.mark.parametrize("field", ["vram", "host"])
def test_more_bandwidth_is_faster(field: str) -> None:
    base = CARDS[1]
    faster = replace(base, **{field: 2 * getattr(base, field)})
    moved = kiv_step(work(512 * K))
    assert step_time(moved, faster).graph < step_time(moved, base).graph
    assert prefill_s(work(128 * K), 256, replace(base, host=base.host / 8)) > prefill_s(work(128 * K), 256, base)
    assert prefill_s(work(128 * K), 8 * K, replace(base, products=2 * base.products)) < prefill_s(
        work(128 * K), 8 * K, base
    )


def test_larger_chunks_read_cold_tokens_less_often() -> None:
    far = replace(CARDS[3], host=1e9)
    times = [prefill_s(work(256 * K), chunk, far) for chunk in (8 * K, 2 * K, 512)]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("name", "found"),
    [("RTX 4070", "RTX 4070"), ("4090", "RTX 4090"), ("nvidia geforce rtx 3060", "RTX 3060"), ("h100", "H100"),
     ("rtx-4070", "RTX 4070"), ("4070 Ti", None), ("RTX", None), ("", None)],
)  # fmt: skip
def test_cards_are_found_by_their_names(name: str, found: str | None) -> None:
    card = find_card(name)
    assert (None if card is None else card.name) == found


def test_cards_have_what_their_makers_state() -> None:
    """Bus width by rate of the memory; tensor cores by 64 products with sums in float32 and the boost clock."""
    assert [card.vram for card in CARDS] == [192 / 8 * 15e9, 192 / 8 * 21e9, 384 / 8 * 21e9, 3350e9]
    cores = {"RTX 3060": (112, 1.777e9), "RTX 4070": (184, 2.475e9), "RTX 4090": (512, 2.52e9)}
    for card in CARDS[:3]:
        count, clock = cores[card.name]
        assert card.products == pytest.approx(count * 64 * 2 * clock, rel=0.01)
    assert CARDS[3].products == pytest.approx(528 * 512 * 2 * 1.83e9, rel=0.01)
