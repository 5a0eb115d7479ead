"""Memory may be refused at any operation: nothing is lost, the same call works again, and every byte comes back."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fast_helpers import SCALE, draw
from kiv_fast import FastPool, Tuning
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kiv_reference import KIVConfig

PLACES = 25
"""Operations that are refused in turn, evenly spread over all that the calls below make."""

ASKS_FOR_NOTHING = ("__get__", "numel", "element_size", "data_ptr", "dim", "_set_grad_enabled")
"""What torch answers without memory; "__get__" is any attribute."""


class Refusing(TorchFunctionMode):
    """Refuses the n-th operation of torch, as a device does that is out of memory; counts all."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func.__name__ not in ASKS_FOR_NOTHING
        if self.calls == self.at:
            self.calls += 1
            raise torch.OutOfMemoryError("injected")
        return func(*args, **(kwargs or {}))


def calls_of(padded: bool) -> Iterator[Callable[..., Any]]:
    """Yield what is done to a store, call by call: prompt, decode, crop, batch, fork."""
    data, start = draw(3, 80, batch=2), 0
    for n in (30, 1, 1, 25, 1, 1, 1, 1, 1, 1):
        key, value, query = (part[:, :, start : start + n] for part in data)
        valid = (torch.arange(n) >= n // 2) | torch.tensor([[True], [False]]) if padded else None
        yield lambda store, key=key, value=value, valid=valid: store.append(key, value, valid)
        yield lambda store, query=query: store.attend(query, scale=SCALE)
        start += n
    yield lambda store: store.crop(start - 9)
    key, value, query = (part[:, :, start : start + 3] for part in data)
    yield lambda store: store.append(key, value)
    yield lambda store: store.attend(query, scale=SCALE)
    yield lambda store: store.repeat_interleave(2)
    yield lambda store: store.attend(query.repeat_interleave(2, dim=0), scale=SCALE)
    yield lambda store: store.fork().attend(query.repeat_interleave(2, dim=0), scale=SCALE)
    yield lambda store: store.crop(20)


def play(config: KIVConfig, padded: bool, mode: Any) -> tuple[list[Any], int, int]:
    """Return all answers, device bytes in the end, and how many calls were refused."""
    pool, answers, refused = FastPool(config, tuning=Tuning(chunk_bytes=4096)), [], 0
    store = pool.layer_store()
    for call in calls_of(padded):
        length = store.length
        try:
            with mode:
                answers.append(call(store))
        except torch.OutOfMemoryError:
            refused += 1
            assert store.length == length
            answers.append(call(store))
    device = pool.memory().device
    store.reset()
    assert pool.memory() == (0, 0, 0)
    return [answer for answer in answers if answer is not None], device, refused


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("ram", [None, 16_000])
def test_refused_memory_changes_nothing(config: KIVConfig, padded: bool, ram: int | None, tmp_path: Path) -> None:
    config = replace(config, prefill="retrieve", query_block_tokens=8, exact_suffix_tokens=4)
    config = replace(config, ram_bytes=ram, spill_dir=tmp_path)
    mode = Refusing()
    expected, device, _ = play(config, padded, mode)
    for at in range(1, mode.calls + 1, mode.calls // PLACES):
        answers, held, refused = play(config, padded, Refusing(at))
        assert (held, refused) == (device, 1)
        assert all(torch.equal(answer, right) for answer, right in zip(answers, expected, strict=True))
