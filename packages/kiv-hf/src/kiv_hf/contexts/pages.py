"""Pages of a saved context, which are read from its segments when they are needed, and verified block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .checksums import block_sums, block_tokens, seed_of
from .faults import corrupt
from .layout import SIDES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from .opened import Opened
    from .segment_file import SegmentFile


class SavedPages:
    """Keys and values of a layer's pages, in files (`kiv_reference.snapshot.ColdPages`)."""

    lasting = True

    def __init__(self, opened: Opened, layer: int, places: NDArray[np.int32] | None = None) -> None:
        self._opened, self._layer = opened, layer  # its files are open as long as this lives
        geometry = opened.manifest.geometries[layer]
        self._geometry, self._places, self._sinks = geometry, places, opened.manifest.config.sink_tokens
        self.block_tokens = block_tokens(geometry.page_tokens)
        self._of_page = geometry.heads * geometry.blocks
        self._files = [file for file in opened.files if file.entry.pages and geometry.within(*file.entry.pages)]
        self._starts = np.array([file.entry.pages[0] for file in self._files if file.entry.pages], np.int64)
        self._seeds = [[seed_of(file.entry.name, self._name(v)) for file in self._files] for v in range(2)]
        self._sums = [[self._read_sums(file, v) for file in self._files] for v in range(2)]
        self._index: tuple[int, dict[str, torch.Tensor]] | None = None

    def _name(self, values: int) -> str:
        return f"{self._layer}.{SIDES[values]}"

    def _read_sums(self, file: SegmentFile, values: int) -> NDArray[np.uint64]:
        return file.tensor(f"{self._name(values)}.sums").view(-1).numpy().view(np.uint64)

    def __len__(self) -> int:
        """Count the pages."""
        return self._geometry.pages

    def read(self, values: bool, blocks: NDArray[np.int64], at: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Read blocks and compare their checksums (`ColdPages.read`).

        Raises
        ------
        KIVCorruptError, KIVStorageError
            Naming the file, and the tokens.
        """
        which = np.searchsorted(self._starts, blocks // self._of_page, side="right") - 1
        for number in np.unique(which).tolist():
            mine = which == number
            own = blocks[mine] - int(self._starts[number]) * self._of_page
            self._read_from(number, values, own, at[mine], out)

    def _read_from(
        self, number: int, values: bool, blocks: NDArray[np.int64], at: NDArray[np.int64], out: NDArray[np.uint8]
    ) -> None:
        """Read blocks of a segment, by their numbers in it, side by side where they lie so."""
        file, size = self._files[number], self._geometry.block_bytes(values)
        last = np.flatnonzero(np.append((np.diff(blocks) != 1) | (np.diff(at) != size), True))
        first = np.append(0, last[:-1] + 1)
        begin = file.parts[self._name(values)].begin
        file.read_many(begin + blocks[first] * size, at[first], at[last] - at[first] + size, out)
        found = block_sums(out, at, size, self._seeds[values][number], blocks)
        wrong = np.flatnonzero(found != self._sums[values][number][blocks])
        if wrong.size:
            block = int(blocks[wrong[0]]) + int(self._starts[number]) * self._of_page
            rule = f"hold the {SIDES[values]}s of {self._told(block)} as they were written"
            raise corrupt(file.path, rule, f"other bytes in {wrong.size} of {len(blocks)} blocks")

    def _told(self, block: int) -> str:
        """Say which tokens a block has: those of the first sequence that has its page."""
        page, within = divmod(block, self._of_page)
        head, part = divmod(within, self._geometry.blocks)
        start = part * self.block_tokens
        found = None if self._places is None else np.argwhere(self._places == page)
        place = f"page {page}, its "
        if found is not None and len(found):
            sequence, position = found[0].tolist()
            place, start = f"sequence {sequence}, ", start + self._sinks + position * self._geometry.page_tokens
        return f"layer {self._layer}, head {head}, {place}tokens {start} to {start + self.block_tokens}"

    def index(self, start: int, stop: int) -> Mapping[str, torch.Tensor] | None:
        """Return the index of pages (`ColdPages.index`), as far as all of them have one.

        Raises
        ------
        KIVCorruptError, KIVStorageError
        """
        rows: list[dict[str, torch.Tensor]] = []
        for number, file in enumerate(self._files):
            first, last = int(self._starts[number]), int(self._starts[number]) + self._held(file)
            part = slice(max(start, first) - first, min(stop, last) - first)
            if part.start < part.stop:
                rows.append({name: tensor[part] for name, tensor in self._index_of(number, file).items()})
        names = rows[0].keys() if rows else ()
        alike = all(row.keys() == names and all(_alike(row[name], rows[0][name]) for name in names) for row in rows)
        if not names or not alike:
            return None
        return {name: torch.cat([row[name] for row in rows]) for name in names}

    def _held(self, file: SegmentFile) -> int:
        assert file.entry.pages is not None, "it is one of pages"
        return self._geometry.within(*file.entry.pages)

    def _index_of(self, number: int, file: SegmentFile) -> dict[str, torch.Tensor]:
        """Return the index in one segment, the last of which is kept: who asks goes from page to page."""
        if self._index is None or self._index[0] != number:
            prefix = f"{self._layer}.index."
            names = [name for name in file.parts if name.startswith(prefix)]
            self._index = number, {name.removeprefix(prefix): file.tensor(name) for name in names}
        return self._index[1]


def _alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and one.shape[1:] == other.shape[1:]
