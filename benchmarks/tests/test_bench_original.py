"""The original KIV's rule against itself written in loops, and its count of moved bytes."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import pytest
import torch
from kiv_reference.errors import KIVUnsupportedError

from benchmarks.original import HOT_TOKENS, PAGE_TOKENS, TOP_PAGES, TOP_TOKENS, OriginalStore

HEADS, GROUPS, WIDTH = 2, 3, 8


def by_loops(key: torch.Tensor, value: torch.Tensor, query: torch.Tensor, scale: float) -> tuple[torch.Tensor, int]:
    """Return output [HQ, D] and the number of pages fetched, for keys and values [H, T, D] and a query [HQ, D]."""
    total = key.shape[1]
    pages = max(0, (total - HOT_TOKENS) // PAGE_TOKENS)
    cold = pages * PAGE_TOKENS
    union: set[int] = set()
    for h, q in enumerate(query):
        means = [key[h // GROUPS, p * PAGE_TOKENS : (p + 1) * PAGE_TOKENS].mean(dim=0) for p in range(pages)]
        scores = [float(q @ mean) for mean in means]
        union |= set(sorted(range(pages), key=lambda p: -scores[p])[:TOP_PAGES])
    tokens = [t for p in sorted(union) for t in range(p * PAGE_TOKENS, (p + 1) * PAGE_TOKENS)]
    raw = {t: max(float(q @ key[h // GROUPS, t]) for h, q in enumerate(query)) for t in tokens}
    attended = sorted(tokens, key=lambda t: -raw[t])[:TOP_TOKENS] + list(range(cold, total))
    outputs = []
    for h, q in enumerate(query):
        weights = [math.exp(scale * float(q @ key[h // GROUPS, t])) for t in attended]
        mixed = sum(w * value[h // GROUPS, t] for w, t in zip(weights, attended, strict=True))
        outputs.append(mixed / sum(weights))
    return torch.stack(outputs), len(union)


@pytest.mark.parametrize("total", [5, HOT_TOKENS + PAGE_TOKENS - 1, HOT_TOKENS + 40 * PAGE_TOKENS + 17])
@pytest.mark.parametrize("chunk", [1, 977, 10_000])
def test_decode_is_the_rule_in_loops(total: int, chunk: int) -> None:
    generator = torch.Generator().manual_seed(total)
    key, value = (torch.randn(HEADS, total, WIDTH, generator=generator) for _ in range(2))
    query = torch.randn(HEADS * GROUPS, WIDTH, generator=generator)
    store = OriginalStore()
    # The last token comes alone: its query is decode's.
    for start, end in [*((s, min(s + chunk, total - 1)) for s in range(0, total - 1, chunk)), (total - 1, total)]:
        store.append(key[None, :, start:end], value[None, :, start:end])
    output = store.attend(query[None, :, None], scale=0.3)
    expected, pages = by_loops(key, value, query, 0.3)
    torch.testing.assert_close(output[0, :, 0], expected, rtol=1e-4, atol=1e-5)
    assert store.moved_bytes == pages * 2 * HEADS * PAGE_TOKENS * WIDTH * 4
    assert sum(store.tokens()) == store.length == total


def test_on_a_device_cold_pages_lie_in_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "packages" / "kiv-fast" / "tests"))
    simulated = importlib.import_module("simulated_device")
    total, step = HOT_TOKENS + 5 * PAGE_TOKENS + 3, 100
    generator = torch.Generator().manual_seed(2)
    key, value = (torch.randn(1, HEADS, total, WIDTH, generator=generator) for _ in range(2))
    query = torch.randn(1, HEADS * GROUPS, 7, WIDTH, generator=generator)
    stores, answers = (OriginalStore(), OriginalStore()), list[list[torch.Tensor]]()
    with simulated.SimulatedDevice() as device:
        for store, at in zip(stores, ("cpu", simulated.DEVICE), strict=True):
            for start in range(0, total, step):
                store.append(*(part[:, :, start : start + step].to(at) for part in (key, value)))
            asked = query.to(at)
            answers.append([store.attend(asked[:, :, first:], scale=0.3).to("cpu") for first in (0, 6)])
        held, ram = device.nbytes, stores[1].memory().ram
    torch.testing.assert_close(*answers)
    token_bytes = 2 * HEADS * WIDTH * 4
    assert ram == 5 * PAGE_TOKENS * token_bytes
    # Twice the hot tokens, means, the query, and what the last append brought.
    assert held < (2 * HOT_TOKENS + 3 * step) * token_bytes


def test_prompts_are_attended_exactly() -> None:
    generator = torch.Generator().manual_seed(1)
    key, value = (torch.randn(1, HEADS, 2400, WIDTH, generator=generator).double() for _ in range(2))
    query = torch.randn(1, HEADS * GROUPS, 100, WIDTH, generator=generator).double()
    store = OriginalStore()
    store.append(key[:, :, :2300], value[:, :, :2300])
    store.append(key[:, :, 2300:], value[:, :, 2300:])
    mask = torch.ones(100, 2400, dtype=torch.bool).tril(2300)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(GROUPS, 1), value.repeat_interleave(GROUPS, 1), attn_mask=mask
    )
    torch.testing.assert_close(store.attend(query, scale=WIDTH**-0.5), expected)


def test_what_the_rule_cannot_do_is_refused() -> None:
    store = OriginalStore()
    with pytest.raises(KIVUnsupportedError, match="one sequence"):
        store.append(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4))
    store.append(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4))
    with pytest.raises(KIVUnsupportedError, match="no modifiers"):
        store.attend(torch.zeros(1, 1, 1, 4), scale=1.0, softcap=30.0)
