"""Copies that run late, in random order: a slot that is used again too early shows as wrong numbers."""

import random

import pytest
import torch
from kiv_fast.device.transfer import Transfer


class LateStreams:
    """Copies run when a random schedule, or a wait, says so."""

    def __init__(self, seed, honest=True):
        self._random = random.Random(seed)
        self._queue = []
        self._honest = honest

    def pinned(self, nbytes):
        return torch.full((nbytes,), 255, dtype=torch.uint8)

    def copy(self, host):
        out = torch.full_like(host, torch.nan)
        self._queue.append((host, out))
        self.run(self._random.randint(0, 2))
        return out

    def run(self, count):
        for _ in range(min(count, len(self._queue))):
            host, out = self._queue.pop(0)
            out.copy_(host)

    def record(self):
        last = self._queue[-1] if self._queue else None

        def wait():
            while self._honest and any(entry is last for entry in self._queue):
                self.run(1)

        return wait


def move(streams, seed):
    """Whether everything that was moved arrived as it was."""
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
def test_no_schedule_overwrites_a_slot(first):
    assert all(move(LateStreams(seed), seed) for seed in range(first, first + 250))


def test_the_test_can_fail():
    assert not all(move(LateStreams(seed, honest=False), seed) for seed in range(50))


def test_on_a_cpu_nothing_moves():
    rows = torch.ones(3)
    assert Transfer().upload(rows) is rows
