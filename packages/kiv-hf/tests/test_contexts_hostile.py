"""Manifests and headers that were made up, with checksums that are right: a named error, or a whole context."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import xxhash
from contexts_manifests import NAMED, PREFIX, folder, manifest_of, put, read_all, sealed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


__all__ = ["folder"]


def test_bytes_of_the_manifest(folder: Path) -> None:
    """1,500 times a few bytes are other ones, are gone, or are there twice."""
    body = (folder / "MANIFEST.json").read_bytes()[PREFIX:]
    assert sealed(body) == (folder / "MANIFEST.json").read_bytes()
    source, refused = random.Random(1), 0
    for _ in range(1500):
        damaged = bytearray(body)
        for _ in range(source.randint(1, 3)):
            at = source.randrange(len(damaged))
            piece = damaged[at : at + source.randint(1, 12)]
            kind = source.randrange(4)
            if kind == 0:
                damaged[at] = source.choice(b'{}[]",:0129-etfna\\ \x00\xff')
            elif kind == 1:
                del damaged[at : at + len(piece)]
            elif kind == 2:
                damaged[at:at] = piece
            else:
                damaged[at : at + 1] = source.choice([b"1e5", b"NaN", b"-1", b"null", b"9" * 30, b"[" * 50, b'""'])
        (folder / "MANIFEST.json").write_bytes(sealed(bytes(damaged)))
        try:
            read_all(folder)
        except NAMED:
            refused += 1
    assert refused > 1300, "most are noticed; a number of tokens, say, may be another one"


ODD: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 2**31, 2**63 - 1, 2**63, 10**30, 1.5, "", "x", "0" * 16, "../" * 4,
    "/etc/passwd",
    [], [0], [0, 0], [0, 1], [1, 0], [[]], {}, {"dict": []}, {"tensor": "0.pages"}, {"float": "0x1p+9999"}, "\x00",
    {"dict": [[0, {"dict": []}], [0, None]]}, {"device": "cuda:99"}, {"device": "xyz"}, {"dtype": "load"},
    {"a": 1, "b": 2},
]  # fmt: skip


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Return every place within JSON: a container, and a key of it."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [spot for key in keys for spot in spots(value[key])]


def mutated(value: Any, source: random.Random) -> None:
    """Change one thing of JSON."""
    holder, key = source.choice(spots(value))
    kind = source.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder[key], int):
        holder[key] += source.choice([-1, 1, 16, 4096])
    elif kind == 2 and isinstance(holder, dict):
        holder[source.choice(["extra", "pages", "0.key", "1.key", ""])] = source.choice(ODD)
    elif kind == 3:
        other, place = source.choice(spots(value))
        holder[key] = json.loads(json.dumps(other[place]))
    else:
        holder[key] = source.choice(ODD)


def test_values_of_the_manifest(folder: Path) -> None:
    """2,000 times a field is another one, is gone, or one more is there."""
    text, source, refused = json.dumps(manifest_of(folder)), random.Random(2), 0
    for _ in range(2000):
        manifest = json.loads(text)
        mutated(manifest, source)
        put(folder, manifest)
        try:
            read_all(folder)
        except NAMED:
            refused += 1
    assert refused > 1300


def change_header(folder: Path, number: int, change: Callable[[bytes], bytes]) -> None:
    """Give a segment another header, and the manifest its checksum."""
    manifest = manifest_of(folder)
    entry = manifest["segments"][number]
    path = folder / f"seg/{entry['name']}.safetensors"
    data = path.read_bytes()
    header = change(data[8 : entry["header_bytes"]])
    header = len(header).to_bytes(8, "little") + header
    data = header + data[entry["header_bytes"] :]
    path.write_bytes(data)
    changed = {
        "header_bytes": len(header),
        "bytes": len(data),
        "header_xxh3_64": f"{xxhash.xxh3_64_intdigest(header):016x}",
    }
    manifest["segments"][number] = {**entry, **changed}
    put(folder, manifest)


def test_values_of_headers(folder: Path) -> None:
    """1,500 times a field of a header is another one; lengths and checksums are right."""
    source, refused = random.Random(3), 0
    originals = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def change(header: bytes) -> bytes:
        fields = json.loads(header)
        for _ in range(source.randint(1, 2)):
            if spots(fields):
                mutated(fields, source)
        text = json.dumps(fields, separators=(",", ":")).encode()
        if source.random() < 0.2:
            text = text.replace(b"}", source.choice([b"", b"}}", b',"0.key":{}}']), 1)
        return text + b" " * (-(len(text) + 8) % 4096)

    for _ in range(1500):
        change_header(folder, source.randrange(2), change)
        try:
            read_all(folder)
        except NAMED:
            refused += 1
        for path, data in originals.items():
            if path.stat().st_size != len(data) or path.read_bytes() != data:
                path.write_bytes(data)
    assert refused > 1400
