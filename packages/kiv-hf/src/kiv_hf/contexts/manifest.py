"""The manifest: what a context is made of, and the checksums of everything but pages and their sums."""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import metadata
from typing import TYPE_CHECKING, NamedTuple

from kiv_reference.config import KIVConfig

from .checksums import checksum, written
from .strict_json import compact
from .tensors import name_of

if TYPE_CHECKING:
    from .layout import Geometry

FORMAT, VERSION = "kiv-context", 1

SPEC_VERSION = 5
"""Of SPEC.md: what a saved state means."""

LARGEST = 1 << 26
"""Bytes of a manifest that is read."""

PREFIX = b'{"xxh3_64":"%s",'
"""How every manifest begins, of any version: the checksum of all that follows it."""

PREFIX_BYTES = len(PREFIX % (b"0" * 16))

NOT_SAVED = ("device_bytes", "ram_bytes", "disk_bytes", "spill_dir")
"""Fields of `KIVConfig` that belong to a machine."""

RULES = tuple(field.name for field in fields(KIVConfig) if field.name not in NOT_SAVED)


class Segment(NamedTuple):
    """A file of tensors.

    Attributes
    ----------
    name : str
        Without folder and ending.
    nbytes, header_bytes : int
    header : int
        Checksum of its header.
    pages : (int, int), or None
        Pages ``[start, stop)`` of every layer that are read from it; None is the one that holds everything else.
    sums : dict
        Checksum of each tensor but for keys and values of pages.
    """

    name: str
    nbytes: int
    header_bytes: int
    header: int
    pages: tuple[int, int] | None
    sums: dict[str, int]


class Layer(NamedTuple):
    """A layer; its state is JSON that `states` reads."""

    kind: str
    geometry: Geometry | None
    state: object


@dataclass(frozen=True, eq=False)
class Manifest:
    """What a context is made of; page segments come first, in order, and the rest segment last."""

    kiv: str
    config: KIVConfig
    tokens: int
    provenance: dict[str, str]
    state: object
    layers: list[Layer]
    segments: list[Segment]

    @property
    def geometries(self) -> dict[int, Geometry]:
        """Layers that have a snapshot."""
        return {n: layer.geometry for n, layer in enumerate(self.layers) if layer.geometry is not None}


def kiv_version() -> str:
    """Return the version of KIV, as far as it is known."""
    try:
        return metadata.version("kiv-hf")
    except metadata.PackageNotFoundError:  # the sources on PYTHONPATH
        return "0+unknown"


def bytes_of_manifest(manifest: Manifest) -> bytes:
    """Return the file."""
    config = {name: getattr(manifest.config, name) for name in RULES}
    for name, value in config.items():
        if isinstance(value, float):
            config[name] = {"float": value.hex()}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "kiv": manifest.kiv,
        "spec": SPEC_VERSION,
        "config": config,
        "tokens": manifest.tokens,
        "provenance": manifest.provenance,
        "state": manifest.state,
        "layers": [_layer(layer) for layer in manifest.layers],
        "segments": [_segment(segment) for segment in manifest.segments],
    }
    body = compact(content)[1:] + b"\n"
    return PREFIX % written(checksum(body)).encode("ascii") + body


def _layer(layer: Layer) -> dict[str, object]:
    snapshot = None if layer.geometry is None else layer.geometry._asdict()
    if snapshot is not None:
        snapshot["dtype"] = name_of(snapshot["dtype"])
    return {"kind": layer.kind, "snapshot": snapshot, "state": layer.state}


def _segment(segment: Segment) -> dict[str, object]:
    return {
        "name": segment.name,
        "bytes": segment.nbytes,
        "header_bytes": segment.header_bytes,
        "header_xxh3_64": written(segment.header),
        "pages": None if segment.pages is None else list(segment.pages),
        "xxh3_64": {name: written(number) for name, number in segment.sums.items()},
    }
