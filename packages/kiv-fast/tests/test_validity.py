"""Flags of valid tokens: what they say, and the room they take, known before they take it."""

import pytest
import torch
from fast_helpers import draw, state_of
from kiv_fast import FastPool
from kiv_fast.pages.validity import Validity
from kiv_reference import KIVConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize("seed", range(20))
def test_flags_are_those_that_were_appended(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    validity, expected = Validity(2, CPU), torch.ones(2, 0, dtype=torch.bool)
    for _ in range(40):
        n, padded = (int(torch.randint(1, high, (1,), generator=generator)) for high in (60, 4))
        flags = torch.rand(2, n, generator=generator) < 0.8 if padded == 1 else None
        room = validity.bytes_with(expected.shape[1] + n, flags is not None)
        validity = validity.extended(flags, expected.shape[1], n)
        assert validity.nbytes == room
        expected = torch.cat([expected, torch.ones(2, n, dtype=torch.bool) if flags is None else flags], dim=1)
        if n % 7 == 0:
            expected = expected[:, : expected.shape[1] - n]
            validity = validity.cropped(expected.shape[1])
            assert validity.whole or validity.nbytes == expected.numel()
        if n % 5 == 0:
            rows = torch.tensor([1, 0] if padded == 2 else [1, 1])
            expected, validity = expected[rows], validity.select(rows)
        length = expected.shape[1]
        found = validity.part(0, length)
        assert validity.whole == (found is None)
        assert torch.equal(torch.ones_like(expected) if found is None else found, expected)
        start = length // 2
        for row in range(2):
            part = validity.row(row, start, length)
            assert (part is None) == bool(expected[row, start:].all())
            assert part is None or torch.equal(part, expected[row, start:])


def test_no_flag_takes_room_while_all_tokens_are_valid() -> None:
    validity = Validity(3, CPU)
    validity = validity.extended(None, 0, 1000)
    assert validity.nbytes == validity.bytes_with(10**6, padded=False) == 0
    validity = validity.extended(torch.tensor([[True], [False], [True]]), 1000, 1)
    assert validity.nbytes == 3 * 1001
    validity = validity.cropped(1000)
    assert validity.whole
    assert validity.nbytes == 0


@pytest.mark.parametrize("padded_at", [0, 20])
def test_flags_count_where_tokens_come_one_by_one(padded_at: int) -> None:
    # Between two pages and two samples nothing else needs room.
    store = FastPool(KIVConfig(page_tokens=512, hot_tokens=200)).layer_store()
    key, value, _ = draw(0, 150, batch=2)
    for at in range(150):
        valid = torch.tensor([[True], [at != padded_at]])
        store.append(key[:, :, at : at + 1], value[:, :, at : at + 1], valid if at <= padded_at else None)
        state = state_of(store)
        assert store.memory().device >= state.recent.nbytes + state.validity.nbytes
