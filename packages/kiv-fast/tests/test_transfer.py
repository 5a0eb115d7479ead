"""Copies that run late, in random order: a slot that is used again too early shows as wrong numbers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kiv_fast.device.transfer import Transfer

if TYPE_CHECKING:
    from collections.abc import Callable


class LateStreams:
    """Copies run when a random schedule, or a wait, says so."""

    def __init__(self, seed: int, honest: bool = True) -> None:
        self._random = random.Random(seed)
        self._queue = []
        self._honest = honest

    def pinned(self, nbytes: int) -> torch.Tensor:
        return torch.full((nbytes,), 255, dtype=torch.uint8)

    def copy(self, host: torch.Tensor) -> torch.Tensor:
        out = torch.full_like(host, torch.nan)
        self._queue.append((host, out))
        self.run(self._random.randint(0, 2))
        return out

    def run(self, count: int) -> None:
        for _ in range(min(count, len(self._queue))):
            host, out = self._queue.pop(0)
            out.copy_(host)

    def record(self) -> Callable[[], None]:
        last = self._queue[-1] if self._queue else None

        def wait() -> None:
            while self._honest and any(entry is last for entry in self._queue):
                self.run(1)

        return wait


def move(streams: Any, seed: int) -> bool:
    """Tell whether everything that was moved arrived as it was."""
    generator, chooser = torch.Generator().manual_seed(seed), random.Random(seed)
    transfer = Transfer(streams)
    gathered = torch.empty(64)
    sent = []
    for _ in range(20):
        rows = gathered[: chooser.randint(1, 64)]
        rows.copy_(torch.randn(rows.shape, generator=generator))
        sent.append((rows.clone(), transfer.upload(rows)))
    streams.run(100)
    return all(torch.equal(a, b) for a, b in sent)


@pytest.mark.parametrize("first", range(0, 1000, 250))
def test_no_schedule_overwrites_a_slot(first: int) -> None:
    assert all(move(LateStreams(seed), seed) for seed in range(first, first + 250))


def test_the_test_can_fail() -> None:
    assert not all(move(LateStreams(seed, honest=False), seed) for seed in range(50))


def test_on_a_cpu_nothing_moves() -> None:
    rows = torch.ones(3)
    assert Transfer().upload(rows) is rows
