"""One commit: a folder has one state, and then another one, whatever happens in between (docs/format.md)."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

from kiv_fast.tiers.file_io import write_all
from kiv_reference.errors import KIVUsageError, refuse

from .faults import system_calls
from .layout import Geometry, page_tensors, rest_tensors
from .manifest import LARGEST, Layer, Manifest, bytes_of_manifest, kiv_version
from .segment_writer import SegmentWriter
from .states import Encoder

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from .folder import Folder
    from .layout import Tensors
    from .manifest import Segment
    from .saved import SavedCache


class Commit:
    """A state that is written to a folder, which its caller has locked.

    Raises
    ------
    KIVUsageError, KIVShapeError
        A layer's state cannot be saved; nothing was written.
    """

    def __init__(self, folder: Folder, saved: SavedCache, progress: Callable[[int, int], None] | None) -> None:
        self._folder, self._io, self._saved, self._progress = folder, folder.io, saved, progress
        snapshots = {number: layer.snapshot for number, layer in enumerate(saved.layers)}
        self._snapshots = {number: each for number, each in snapshots.items() if each is not None}
        self._geometries = {number: Geometry.of(each) for number, each in self._snapshots.items()}
        self._rest, self._states = self._beside_pages()
        self._made: list[str] = []  # files that no manifest names yet
        self._done, self._total = 0, 0

    def _beside_pages(self) -> tuple[dict[str, torch.Tensor], list[object]]:
        """Return the tensors beside pages, and the states of the cache and of each layer as JSON."""
        encoder = Encoder()
        states = [encoder.encode("state", self._saved.state)]
        states += [encoder.encode(f"{n}.state", layer.state) for n, layer in enumerate(self._saved.layers)]
        rest = dict(encoder.tensors)
        for number, snapshot in self._snapshots.items():
            rest.update({f"{number}.{name}": tensor for name, tensor in rest_tensors(snapshot).items()})
        return rest, states

    def run(self, kept: list[Segment], segment_bytes: int) -> None:
        """Write what is not kept, have it named, and remove what is named no more."""
        start = kept[-1].pages[1] if kept and kept[-1].pages else 0
        stop = max((each.pages for each in self._geometries.values()), default=0)
        step = max(1, segment_bytes // max(1, sum(each.page_bytes for each in self._geometries.values())))
        self._total = sum(tensor.nbytes for tensor in self._rest.values()) + sum(
            each.page_bytes * each.within(start, stop) for each in self._geometries.values()
        )
        try:
            segments = list(kept)
            segments += [self._page_segment(at, min(at + step, stop)) for at in range(start, stop, step)]
            segments.append(self._rest_segment())
            temporary = self._write_manifest(segments)
        except BaseException:
            self._give_up()
            raise
        with system_calls(self._folder.manifest, "put in place", writing=True):
            self._io.replace(temporary, self._folder.manifest)
            self._io.sync_folder(self._folder.path)
        self._sweep({segment.name for segment in segments})

    def _page_segment(self, start: int, stop: int) -> Segment:
        counts = {number: each.within(start, stop) for number, each in self._geometries.items()}
        counts = {number: count for number, count in counts.items() if count}
        tensors: Tensors = {}
        indexes: dict[str, torch.Tensor] = {}
        for number, count in counts.items():
            tensors.update(page_tensors(number, self._geometries[number], count))
            index = self._snapshots[number].cold.index(start, start + count) or {}
            indexes.update({f"{number}.index.{name}": tensor for name, tensor in index.items()})
        tensors.update({name: (tensor.dtype, tensor.shape) for name, tensor in indexes.items()})
        with self._writer(tensors) as writer:
            for number, count in counts.items():
                writer.pages(number, self._geometries[number], self._snapshots[number], start, start + count)
            for name, tensor in indexes.items():
                writer.whole(name, tensor)
            return writer.finish((start, stop))

    def _rest_segment(self) -> Segment:
        with self._writer({name: (tensor.dtype, tensor.shape) for name, tensor in self._rest.items()}) as writer:
            for name, tensor in self._rest.items():
                writer.whole(name, tensor)
                self._wrote(tensor.nbytes)
            return writer.finish(None)

    def _writer(self, tensors: Tensors) -> SegmentWriter:
        writer = SegmentWriter(self._folder, tensors, self._wrote)
        self._made.append(writer.path)
        return writer

    def _wrote(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _write_manifest(self, segments: list[Segment]) -> str:
        """Have the segments' names, and a manifest that is not in place yet, on the disk; returns its path."""
        saved, folder = self._saved, self._folder
        layers = [
            Layer(layer.kind, self._geometries.get(number), self._states[1 + number])
            for number, layer in enumerate(saved.layers)
        ]
        parts = saved.config, saved.tokens, saved.provenance, self._states[0], layers, segments
        data = bytes_of_manifest(Manifest(kiv_version(), *parts))
        if len(data) > LARGEST:
            rule, got = f"a manifest must have at most {LARGEST} bytes", f"{len(data)}"
            raise refuse(KIVUsageError, rule, got, "Save less beside pages, or in larger pages.")
        with system_calls(folder.segments, "write to", writing=True):
            self._io.sync_folder(folder.segments)
        temporary = folder.temporary(segments[-1].name)
        with system_calls(temporary, "write", writing=True):
            handle = self._io.create_named(temporary)
            self._made.append(temporary)
            try:
                write_all(self._io, handle, memoryview(data), 0)
                self._io.sync(handle)
            finally:
                self._io.close(handle)
        return temporary

    def _give_up(self) -> None:
        """Remove what was written; what cannot be removed is left over, and goes with the next commit."""
        for path in self._made:
            with suppress(OSError):
                self._io.remove(path)

    def _sweep(self, named: set[str]) -> None:
        """Remove what no manifest names. The new state is there: what stays is in nobody's way."""
        try:
            for path in self._folder.left_over(named):
                self._io.remove(path)
        except OSError as error:
            if error.errno is None:
                raise
            warnings.warn(f"{self._folder.path} keeps files that it needs no more: {error}", RuntimeWarning, 2)
