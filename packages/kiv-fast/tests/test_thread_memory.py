"""The compiled operations keep workspaces for each thread, and give them back when it ends."""

import threading

import psutil
import pytest
import torch
from fast_helpers import SCALE, draw
from kiv_fast import FastPool
from kiv_fast.ops import library
from kiv_reference import KIVConfig

LIMIT = 16 << 20


@pytest.mark.skipif(library.load() is None, reason="nothing is compiled")
def test_threads_that_end_leave_no_memory() -> None:
    """Each takes a megabyte: 40 of them would leave as many."""
    config = KIVConfig(hot_tokens=64, page_tokens=64, candidate_tokens=4096, retrieve_tokens=2048)
    store = FastPool(config, ops="cpu").layer_store()
    key, value, _ = draw(0, 16_384, width=32, value_width=256)
    store.append(key, value)
    query = draw(0, 1, heads=8, width=32)[2]  # [1, 16, 1, 32]: eight heads a KV head
    step = key[:, :, :1], value[:, :, :1], query

    def decode() -> None:
        with torch.no_grad():
            store.append(*step[:2])
            store.attend(step[2], scale=SCALE)

    def in_a_thread() -> None:
        thread = threading.Thread(target=decode)
        thread.start()
        thread.join()

    for _ in range(4):
        in_a_thread()
    before = psutil.Process().memory_info().rss
    for _ in range(40):
        in_a_thread()
    assert psutil.Process().memory_info().rss - before < LIMIT
