"""docs/format.md: a reader that was written by it alone, and a context of version 1 that was made once."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import contexts_v1
import numpy as np
import pytest
import torch
import xxhash
from contexts_helpers import LONG_PAGES, cache_of, filled, of_cache, on_cpu, read_all
from kiv_hf.contexts import write as write_module
from kiv_hf.contexts.manifest import NOT_SAVED, RULES, SPEC_VERSION
from kiv_hf.contexts.read import read
from kiv_hf.contexts.verify import verify
from kiv_hf.contexts.write import write
from kiv_reference import KIVConfig

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "BOOL": 1}


def xxh3(data: bytes, seed: int = 0) -> int:
    return xxhash.xxh3_64_intdigest(data, seed)


class PlainReader:
    """Reads a context with json, struct and xxhash, by the page's words."""

    def __init__(self, folder: Path) -> None:
        raw = (folder / "MANIFEST.json").read_bytes()
        assert raw[:30] == b'{"xxh3_64":"' + b"%016x" % xxh3(raw[30:]) + b'",'
        self.manifest = json.loads(raw)
        assert (self.manifest["format"], self.manifest["version"]) == ("kiv-context", 1)
        self.pages: dict[str, list[bytes]] = {}
        self.tensors: dict[str, tuple[list[int], bytes]] = {}
        for entry in self.manifest["segments"]:
            self._segment(entry, (folder / "seg" / f"{entry['name']}.safetensors").read_bytes())

    def _segment(self, entry: Any, data: bytes) -> None:
        (length,) = struct.unpack("<Q", data[:8])
        start = 8 + length
        assert start % 4096 == 0
        assert (len(data), start) == (entry["bytes"], entry["header_bytes"])
        assert f"{xxh3(data[:start]):016x}" == entry["header_xxh3_64"]
        at, found = 0, dict[str, tuple[list[int], bytes]]()
        for name, told in json.loads(data[8:start]).items():
            begin, end = told["data_offsets"]
            assert begin == at
            assert end == at + int(np.prod(told["shape"])) * BYTES[told["dtype"]]
            found[name], at = (told["shape"], data[start + begin : start + end]), end
        assert start + at == len(data)
        paged = {f"{n}.{side}" for n in range(len(self.manifest["layers"])) for side in ("key", "value")}
        for name, (_, content) in found.items():
            if name not in paged:
                seed = xxh3(f"{entry['name']}/{name}".encode())
                assert f"{xxh3(content, seed):016x}" == entry["xxh3_64"][name]
        if entry["pages"] is None:
            self.tensors = found
        for name in paged & found.keys():
            self._blocks(entry, name, found)

    def _blocks(self, entry: Any, name: str, found: dict[str, tuple[list[int], bytes]]) -> None:
        """Check the blocks of keys or values, and keep those of pages that belong to the context."""
        (held, heads, size, _), content = found[name]
        blocks = held * heads * (size // (16 if size % 16 == 0 else size))
        sums = struct.unpack(f"<{blocks}Q", found[f"{name}.sums"][1])
        seed, length = xxh3(f"{entry['name']}/{name}".encode()), len(content) // blocks
        for k, expected in enumerate(sums):
            assert xxh3(content[k * length : (k + 1) * length], (seed + k) % 2**64) == expected
        start, stop = entry["pages"]
        count = min(stop, self.manifest["layers"][int(name.split(".")[0])]["snapshot"]["pages"]) - start
        page = len(content) // held
        self.pages.setdefault(name, []).extend(content[k * page : (k + 1) * page] for k in range(count))

    def whole(self, layer: int, side: str, sequence: int, head: int) -> bytes:
        """Return all keys or values of a sequence and head, in order of position."""
        told = self.manifest["layers"][layer]["snapshot"]
        sinks, heads = self.manifest["config"]["sink_tokens"], told["heads"]
        row = told[f"{side}_width"] * BYTES[told["dtype"]]
        (_, columns), table = self.tensors[f"{layer}.pages"]
        numbers = struct.unpack(f"<{len(table) // 4}i", table)[sequence * columns : (sequence + 1) * columns]
        (_, _, beside, _), content = self.tensors[f"{layer}.recent.{side}"]
        begin = (sequence * heads + head) * beside * row
        recent = content[begin : begin + beside * row]
        size = told["page_tokens"] * row
        pages = [self.pages[f"{layer}.{side}"][number][head * size : (head + 1) * size] for number in numbers]
        return recent[: sinks * row] + b"".join(pages) + recent[sinks * row :]


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reader_by_the_page_alone(dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds every token where the page says, of several segments and after a crop."""
    monkeypatch.setattr(write_module, "SEGMENT_BYTES", 1 << 13)
    store = filled(300, config=LONG_PAGES, dtype=dtype, padding=7, batch=2)
    write(tmp_path / "x", cache_of(store, config=LONG_PAGES))
    store.crop(200)
    write(tmp_path / "x", cache_of(store, config=LONG_PAGES), previous_pages=5)
    found = PlainReader(tmp_path / "x")
    assert len(found.manifest["segments"]) > 2
    contents = store.contents
    assert contents is not None
    valid = contents.valid[:, None, :, None]
    for side, tokens in (("key", contents.key.tensor), ("value", contents.value.tensor)):
        plain = tokens.masked_fill(~valid, 0)
        for sequence in range(2):
            for head in range(2):
                assert found.whole(0, side, sequence, head) == raw(plain[sequence, head])
    assert found.tensors["0.valid"] == ([2, 200], raw(contents.valid))


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    """A copy of the context that is kept: it belongs to whoever runs the tests."""
    return shutil.copytree(contexts_v1.FOLDER, tmp_path / "v1")


def test_what_was_saved_with_version_1_is_read(version_1: Path) -> None:
    assert not verify(version_1)
    assert read_all(version_1) == of_cache(contexts_v1.cache())
    files = [path.stat().st_size for path in version_1.rglob("*") if path.is_file()]
    assert sum(files) < 1 << 16


def test_numbers_of_version_1(version_1: Path) -> None:
    """Known ones, without the code that made them."""
    saved = read(version_1, on_cpu)
    first, second = saved.layers[0].snapshot, saved.layers[1].snapshot
    assert first is not None
    assert second is not None
    assert first.read_pages(False, 1, 2)[0, 0, :2].tolist() == [[32.0, 32.25], [32.5, 32.75]]
    assert first.read_pages(True, 2, 3)[0, 1, 31].tolist() == [43.25, 43.5, 43.75]
    assert first.pages.tolist() == [[0, 1], [2, 1]]
    assert (first.length, second.length) == (108, 5)
    assert second.key[0, 0, 1].tolist() == [2.0, 2.25, 2.5, 2.75]
    index = first.cold.index(1, 3)
    assert index is not None
    assert index["codes"][1, 1, 1, 0].tolist() == list(range(176, 192))
    assert saved.layers[2].state["by_layer"][0].tolist() == [1, 2]  # type: ignore[index, union-attr]
    assert saved.config.max_missed_mass == 0.125


def test_what_is_written_is_what_was_written(version_1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte: whatever changes the format changes its version."""
    monkeypatch.setattr(contexts_v1, "FOLDER", version_1.parent / "now")
    contexts_v1.main()
    names = sorted(str(path.relative_to(version_1)) for path in version_1.rglob("*"))
    assert names == sorted(str(path.relative_to(contexts_v1.FOLDER)) for path in contexts_v1.FOLDER.rglob("*"))
    for name in names:
        if name.endswith("safetensors"):
            assert (version_1 / name).read_bytes() == (contexts_v1.FOLDER / name).read_bytes()
    then, now = (json.loads((path / "MANIFEST.json").read_text()) for path in (version_1, contexts_v1.FOLDER))
    for told in (then, now):
        del told["kiv"], told["xxh3_64"]
    assert then == now


def test_the_example_of_the_page(version_1: Path) -> None:
    data = (version_1 / "seg/00000000000000000000000000000001.safetensors").read_bytes()
    seed = xxh3(b"00000000000000000000000000000001/0.key")
    assert seed == 0xED9AD1CAE6F9EABC
    assert xxh3(data[4928 : 4928 + 128], seed + 5) == 0x6D2082DBB7EBE68A
    assert data[4136:4144].hex(" ") == "8a e6 eb b7 db 82 20 6d"
    snapshot = read(version_1, on_cpu).layers[0].snapshot
    assert snapshot is not None
    assert raw(snapshot.read_pages(False, 1, 2)[0, 0, 16:32]) == data[4928 : 4928 + 128]


def test_every_rule_is_saved() -> None:
    """A field that is new in `KIVConfig` is a budget, or a new version of the format."""
    assert tuple(KIVConfig.__dataclass_fields__) == RULES + NOT_SAVED
    assert len(RULES) == 12


def test_a_context_read_and_written_is_the_same_again(version_1: Path) -> None:
    write(version_1.parent / "y", read(version_1, on_cpu))
    one, two = (read(path, on_cpu) for path in (version_1, version_1.parent / "y"))
    assert of_cache(one) == of_cache(two)


def test_the_version_of_the_specification_is_that_of_the_text() -> None:
    text = (Path(__file__).parents[3] / "SPEC.md").read_text(encoding="utf-8")
    assert f"Version {SPEC_VERSION} of " in text
