"""What a decode step of a device reads, in bytes: what it needs, and over the bus what the device does not keep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from fast_helpers import SCALE, draw, state_of
from kiv_fast import FastPool
from kiv_reference import KIVConfig
from simulated_device import DEVICE

pytest.importorskip("triton")

import simulated_launch
from simulated_reads import Reads, total

if TYPE_CHECKING:
    from kiv_fast.store import FastStore

TOKENS, PAGE, CODED, WIDTH, GROUPS, SIZE = 8300, 512, 64, 64, 2, 2
"""Of one KV head of 64 channels in bfloat16, and of two query heads."""

HOST = "key", "value"
INDEX = "code", "channel", "step", "base", "mean"
ONCE = "code", "estimate", "order", "key", "value", "key_kept", "value_kept", "hot_k", "hot_v", "sink_k", "sink_v"
"""What grows with the context or the window: no program reads what another one of its launch reads."""


def needed(store: FastStore, key_rows: int, value_rows: int) -> int:
    """Count the bytes of what a step has to look at, each once for each kernel that wants it."""
    state = state_of(store)
    assert state.cold.index is not None
    cold = state.pages * PAGE
    index = state.pages * state.cold.index.device_bytes
    # Estimates are summed up by KV head, and attended as far as nothing was selected; the sums are counted by their
    # highest bits as they are made, listed, and compared with the last of the candidates.
    estimates, sums = 2 * 4 * GROUPS * cold, 2 * 4 * cold
    window = (store.length - cold) * 2 * WIDTH * SIZE
    return index + estimates + sums + window + (key_rows + value_rows) * WIDTH * SIZE


def test_a_step_reads_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    config = KIVConfig(
        hot_tokens=64, sink_tokens=4, page_tokens=PAGE, index_channels=CODED, candidate_tokens=256, retrieve_tokens=64,
    )  # fmt: skip
    data = draw(0, TOKENS + 2, heads=1, width=WIDTH, value_width=WIDTH, dtype=torch.bfloat16)
    reads = Reads(monkeypatch)
    with simulated_launch.device(monkeypatch, reads.launch):
        store = FastPool(config, ops="triton").layer_store()
        store.append(*(part[:, :, :TOKENS].to(DEVICE) for part in data[:2]))
        query = data[2][:, :, -1:].to(DEVICE)
        for again in (False, True):
            at = TOKENS + again
            store.append(*(part[:, :, at : at + 1].to(DEVICE) for part in data[:2]))
            reads.clear()
            store.attend(query, scale=SCALE)
            report = store.report
            bus = total(reads.asked, HOST)
            assert bus == report.key_bytes + report.value_bytes - report.kept_bytes
            # The same query once more asks for the same rows, which are kept.
            assert (bus == 0) == again
            for name in ONCE:
                # But for the estimates of what was selected, which are looked up again.
                assert total(reads.asked, [name]) <= 1.01 * total(reads.once, [name]), name
        rows = (report.key_bytes // WIDTH // SIZE, report.value_bytes // WIDTH // SIZE)
        assert total(reads.asked, ["code"]) == state_of(store).pages * PAGE * CODED // 2
        assert rows == (256, 64)
        assert sum(reads.once.values()) <= 1.1 * needed(store, *rows)
