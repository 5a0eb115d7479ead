"""What a manifest may not say, and what a segment may not hold, though checksums are right."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import xxhash
from contexts_helpers import on_cpu
from contexts_manifests import PREFIX, folder, manifest_of, put, read_all, sealed
from kiv_hf.contexts.read import read
from kiv_reference.errors import KIVCorruptError, KIVMismatchError

if TYPE_CHECKING:
    from pathlib import Path


__all__ = ["folder"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"tokens":36,', b'"tokens":36,"tokens":36,'),
        (b'"tokens":36,', b'"tokens":36,"more":1,'),
        (b'"tokens":36,', b'"tokens":36.0,'),
        (b'"tokens":36,', b'"tokens":NaN,'),
        (b'"tokens":36,', b""),
        (b'"tokens":36,', b'"tokens":' + b"9" * 5000 + b","),
        (b'"provenance":{', b'"provenance":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b","),
        (b'"provenance":{', b'"provenance":{"a":1,'),
        (b'"spec":5', b'"spec":true'),
        (b'"kiv-context"', b'"kiv-contexts"'),
        (b'"page_tokens":4', b'"page_tokens":"4"'),
        (b'"hot_tokens":8', b'"hot_tokens":90'),
        (b'"index_channels":2', b'"index_channels":0'),
        (b'"max_missed_mass":{"float":"0x1.999999999999ap-4"}', b'"max_missed_mass":{"float":"0x1.8p+4"}'),
        (b'"finite":true', b'"finite":1'),
        (b'"heads":2', b'"heads":4'),
        (b'"key_width":4', b'"key_width":8'),
        (b'"batch":1', b'"batch":2'),
        (b'"dtype":"F32","batch"', b'"dtype":"I32","batch"'),
        (b'"dtype":"F32","batch"', b'"dtype":"BF16","batch"'),
        (b'"pages":6,', b'"pages":5,'),
        (b'"pages":6,', b'"pages":7,'),
        (b'"pages":[0,6]', b'"pages":[1,6]'),
        (b'"pages":[0,6]', b'"pages":[0,6,6]'),
        (b'"pages":[0,6]', b'"pages":null'),
        (b'"pages":null', b'"pages":[6,7]'),
        (b'"name":"', b'"name":"../seg/'),
        (b"{", b"\xff{"),
        (b'"tensor":"state.0"', b'"tensor":"0.pages"'),
        (b'"tensor":"state.0"', b'"tensor":"0.recent.key"'),
        (b'[1,{"float"', b'[1.0,{"float"'),
        (b'[[1,{"float"', b'[[1,null],[1,{"float"'),
    ],
)
def test_what_a_manifest_may_not_say(old: bytes, new: bytes, folder: Path) -> None:
    body = (folder / "MANIFEST.json").read_bytes()[PREFIX:]
    assert old in body, "what is replaced"
    (folder / "MANIFEST.json").write_bytes(sealed(body.replace(old, new, 1)))
    with pytest.raises((KIVCorruptError, KIVMismatchError)):
        read_all(folder)


def test_a_manifest_that_is_too_long_is_not_read(folder: Path) -> None:
    with open(folder / "MANIFEST.json", "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(KIVCorruptError, match="at most"):
        read(folder, on_cpu)


def test_truth_values_are_0_or_1(folder: Path) -> None:
    """A byte that is neither, with a checksum that is right, is no truth value of torch's."""
    manifest = manifest_of(folder)
    entry = manifest["segments"][-1]
    path = folder / f"seg/{entry['name']}.safetensors"
    data = bytearray(path.read_bytes())
    begin, end = json.loads(data[8 : entry["header_bytes"]])["0.valid"]["data_offsets"]
    at = slice(begin + entry["header_bytes"], end + entry["header_bytes"])
    data[at.start] = 2
    path.write_bytes(data)
    seed = xxhash.xxh3_64_intdigest(f"{entry['name']}/0.valid".encode())
    entry["xxh3_64"]["0.valid"] = f"{xxhash.xxh3_64_intdigest(bytes(data[at]), seed):016x}"
    put(folder, manifest)
    with pytest.raises(KIVCorruptError, match=r"0 and 1 in 0\.valid"):
        read(folder, on_cpu)
