"""The hot buffer of a steady decode holds the window and a page, whatever was appended before."""

import pytest
import torch
from fast_helpers import SCALE, draw, state_of
from kiv_fast import FastPool
from kiv_fast.shape import Shape
from kiv_fast.tiers.window import Recent
from kiv_reference import KIVConfig

SINKS, HOT, PAGE = 4, 64, 32


@pytest.mark.parametrize("attended", [True, False])
def test_a_long_append_leaves_no_room_behind(attended: bool) -> None:
    pool = FastPool(KIVConfig(hot_tokens=HOT, page_tokens=PAGE, sink_tokens=SINKS))
    store = pool.layer_store()
    key, value, query = draw(0, 5000)
    for start, stop in ((0, 4990), *((at, at + 1) for at in range(4990, 5000))):
        store.append(key[:, :, start:stop], value[:, :, start:stop])
        if attended or stop == 5000:
            store.attend(query[:, :, start:stop], scale=SCALE)
    slots = SINKS + HOT + PAGE
    assert state_of(store).recent.nbytes == slots * 2 * 2 * 16 * 4
    pool.close()


RING, LAST = KIVConfig(hot_tokens=8, page_tokens=4, sink_tokens=0), 15


@pytest.fixture
def ring() -> Recent:
    """A ring that is full: the tokens 4 to 15, of which the last four are where 0 to 3 were."""
    recent = Recent(Shape(2, 1, 1, 1, torch.float32, torch.device("cpu")), RING, ring=True)
    recent.append(*(numbered(0, LAST - 3),) * 2)
    recent.drop_pages(1)
    assert recent.room == 4
    for part in recent.hot_buffers:
        part[:, :, :4] = numbered(LAST - 3, LAST + 1)
    recent.hot_count += 4
    assert recent.room == 0
    recent.moves = 0
    return recent


def numbered(start: int, stop: int) -> torch.Tensor:
    return torch.arange(start, stop, dtype=torch.float32).view(1, 1, -1, 1).repeat(2, 1, 1, 1)


def tokens(recent: Recent, row: int = 0) -> list[float]:
    return recent.hot(row, 0, recent.hot_count, 0, None).key.flatten().tolist()


def test_a_ring_is_read_in_order(ring: Recent) -> None:
    first = ring.hot(1, 0, 8, 0, None).key.flatten().tolist()
    assert first == [*range(4, 12)]
    assert ring.moves == 0
    assert tokens(ring) == [*range(4, 16)]
    assert ring.moves == 1


def test_a_ring_is_copied_in_order(ring: Recent) -> None:
    key, value = ring.whole()
    assert key[0].flatten().tolist() == value[1].flatten().tolist() == [*range(4, 16)]
    assert ring.moves == 0


def test_pages_leave_a_ring_where_they_are(ring: Recent) -> None:
    key, value = ring.pages(0, 1)
    assert key.flatten().tolist() == value.flatten().tolist() == [*range(4, 8)]
    ring.drop_pages(1)
    ring.take_back(1)
    ring.drop_pages(2)
    assert ring.moves == 0
    assert tokens(ring) == [*range(12, 16)]


def test_tokens_come_after_those_of_a_ring(ring: Recent) -> None:
    ring.append(*(numbered(16, 20),) * 2)
    assert tokens(ring, 1) == [*range(4, 20)]


@pytest.mark.parametrize("back", [False, True])
def test_a_ring_is_cropped(ring: Recent, back: bool) -> None:
    came = (numbered(0, 4), numbered(0, 4)) if back else None
    assert tokens(ring.cropped(0, 10, came)) == [*range(0 if back else 4, 14)]


def test_sequences_of_a_ring_are_chosen(ring: Recent) -> None:
    assert tokens(ring.select(torch.tensor([1]))) == [*range(4, 16)]
