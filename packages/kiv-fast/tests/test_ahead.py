"""Tiles on their way to a device: in which order, after what, and in how much memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import torch
from kiv_fast.device.ahead import Ahead, HostTile
from kiv_fast.device.transfer import Beside
from kiv_fast.memory.growable_table import Table
from kiv_fast.memory.ledger import Account, Ledger
from kiv_fast.memory.pinning import LEAST_BYTES, SlabPinning
from kiv_fast.memory.scratch import Scratch
from kiv_reference import KIVConfig
from simulated_device import DEVICE, OnDevice, SimulatedDevice
from simulated_streams import Runtime, SimulatedStreams

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

HEADS, SIZE, WIDTH = 2, 4, 3
PAGES = (3, 3, 3, 3, 2)
"""Of each tile; the last one is shorter."""


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice() as device:
        yield device


@pytest.fixture
def streams(device: SimulatedDevice) -> SimulatedStreams:
    return SimulatedStreams(DEVICE)


@pytest.fixture
def ahead(streams: SimulatedStreams) -> Ahead:
    return Ahead(streams, Scratch(Account(Ledger(KIVConfig()))), DEVICE)


def paged(page: torch.Tensor) -> HostTile:
    """Return pages ``[n, H, P, width]`` as two pieces where they lie."""
    flat, cut = page.view(-1), page.numel() // 2 + 1
    return HostTile([flat[:cut], flat[cut:]], tuple(page.shape), True)


def gathered(page: torch.Tensor) -> HostTile:
    """Return pages as the host gathers them."""
    tokens = page.transpose(0, 1).flatten(1, 2)
    return HostTile([tokens], tuple(tokens.shape), False)


def tiles(
    form: Callable[[torch.Tensor], HostTile], heads: int = HEADS
) -> tuple[list[torch.Tensor], list[Callable[[], tuple[HostTile, HostTile]]]]:
    """Return the numbers of each tile, ``[heads, n * P, width]``, and what reads them."""
    generator = torch.Generator().manual_seed(heads)
    pages = [torch.randn(n, heads, SIZE, WIDTH, generator=generator) for n in PAGES]
    return [gathered(page).pieces[0] for page in pages], [lambda page=page: (form(page), form(-page)) for page in pages]


def attend(ahead: Ahead, reads: list[Callable[[], tuple[HostTile, HostTile]]]) -> list[torch.Tensor]:
    """Read every tile on the device, and check that values are keys with another sign."""
    found = []
    for key, value in ahead.tiles(reads):
        found.append(key * 1)
        assert torch.equal((key + value).cpu(), torch.zeros(key.shape))
    return [key.cpu() for key in found]


@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("form", [paged, gathered])
def test_tiles_arrive_as_they_were(ahead: Ahead, form: Callable[[torch.Tensor], HostTile], heads: int) -> None:
    expected, reads = tiles(form, heads)
    for _ in range(2):  # the buffers serve again
        assert all(torch.equal(a, b) for a, b in zip(attend(ahead, reads), expected, strict=True))


def test_the_next_tile_is_on_its_way_while_one_is_attended(ahead: Ahead, streams: SimulatedStreams) -> None:
    _, reads = tiles(gathered)
    begun = [streams.beside for _ in ahead.tiles(reads)]
    assert begun == [2 * min(number + 2, len(PAGES)) for number in range(len(PAGES))]


@pytest.mark.parametrize("form", [paged, gathered])
def test_the_host_waits_for_nothing_on_the_device(
    ahead: Ahead, device: SimulatedDevice, form: Callable[[torch.Tensor], HostTile]
) -> None:
    _, reads = tiles(form)
    for key, value in ahead.tiles(reads):
        assert key.shape == value.shape
    assert not device.waits


@pytest.mark.parametrize("form", [paged, gathered])
def test_a_tile_that_is_read_before_its_copy_has_landed_shows(
    ahead: Ahead, monkeypatch: pytest.MonkeyPatch, form: Callable[[torch.Tensor], HostTile]
) -> None:
    begin = SimulatedStreams.copy_beside
    monkeypatch.setattr(SimulatedStreams, "copy_beside", lambda *call: begin(*call)._replace(join=lambda: None))
    found = ahead.tiles(tiles(form)[1])  # at whose end all copies land
    key, _ = next(found)
    assert key.cpu().isnan().all()


def test_a_buffer_that_is_filled_while_it_is_read_shows(ahead: Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedStreams, "mark", lambda streams: 0)
    with pytest.raises(AssertionError, match="filled while it was read"):
        attend(ahead, tiles(paged)[1])


def test_pinned_memory_that_is_filled_again_too_early_shows(ahead: Ahead, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = SimulatedStreams.copy_beside

    def careless(*call: object) -> Beside:
        return begin(*call)._replace(wait=lambda: None)  # type: ignore[arg-type]

    monkeypatch.setattr(SimulatedStreams, "copy_beside", careless)
    with pytest.raises(AssertionError, match="filled again before its copy was over"):
        attend(ahead, tiles(gathered)[1])


def test_copies_that_were_begun_are_over_when_a_call_breaks_off(ahead: Ahead, streams: SimulatedStreams) -> None:
    expected, reads = tiles(paged)
    found = cast("Generator[object]", ahead.tiles(reads))
    next(found)
    found.close()
    held = [tensor for tensor in ahead._scratch._buffers.values() if isinstance(tensor, OnDevice)]
    assert held
    assert not any(tensor.cpu()[: expected[0].numel()].isnan().any() for tensor in held)


def test_no_piece_reaches_over_the_end_of_a_pinned_slab() -> None:
    table = Table((3, 50_000), torch.float32, torch.device("cpu"), SlabPinning(Runtime(DEVICE), 1 << 40))
    table.ensure(9)
    table.tensor[:9] = torch.arange(9)[:, None, None]
    base = table.tensor.data_ptr()
    records = [1, 2, 3, 6, 0, 7, 8]
    pieces = table.pieces(records)
    assert torch.equal(torch.cat(pieces), table.tensor[records].view(-1))
    slabs, end = list(table._region.slabs), 0
    ends = [end := end + slab for slab in slabs]
    assert len(ends) > 2
    assert ends[0] == LEAST_BYTES
    crossed = 0
    for piece in pieces:
        first, last = piece.data_ptr() - base, piece.data_ptr() - base + piece.nbytes
        assert not any(first < end < last for end in ends)
        crossed += first in ends or last in ends
    assert crossed
    assert len(pieces) > 4  # more than there are runs
