"""A ``.gguf`` that is not whole says so, whatever was cut; a conversion that is asked to end clears up."""

from __future__ import annotations

import os
import signal
import struct
from typing import TYPE_CHECKING, Any

import numpy
import pytest
import torch
from gguf import GGUFWriter
from kiv_hf.cli.models import gguf, unfinished
from kiv_hf.cli.models.gguf_file import check_gguf
from kiv_reference.errors import KIVUnsupportedError
from transformers import AutoTokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    file = tmp_path / "whole.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "b", "<|im_end|>"])
    writer.add_array("nested.numbers", [1, 2, 3])
    writer.add_bool("flag", True)
    writer.add_tensor("one", numpy.ones((8, 32), dtype=numpy.float32))
    writer.add_tensor("two", numpy.ones((5, 7), dtype=numpy.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def refusal(file: Path) -> str:
    with pytest.raises(KIVUnsupportedError) as refused:
        check_gguf(file)
    said = str(refused.value)
    assert str(file) in said
    assert said.endswith("Download or copy the file again.")
    return said


def test_a_whole_file_passes(whole: Path) -> None:
    check_gguf(whole)


def test_every_cut_is_called_truncated(whole: Path, tmp_path: Path) -> None:
    contents, cut = whole.read_bytes(), tmp_path / "cut.gguf"
    data_end = len(contents) - len(contents) % 32 + 70 % 32  # the writer pads the last tensor, of 70 bytes
    for length in [*range(0, 700, 7), *range(700, min(data_end, len(contents)) - 32, 101), len(contents) - 32]:
        if length < len(contents):
            cut.write_bytes(contents[:length])
            said = refusal(cut)
            assert "truncated" in said or length < 4, (length, said)


@pytest.mark.parametrize(
    ("contents", "finding"),
    [
        (b"this is no model", "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "no .gguf of version 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "truncated"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63), "truncated"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99), "unknown kind 99"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 4, 2**62), "truncated"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 9) + struct.pack("<IQ", 9, 2) * 9, "unknown kind 9"),
        (b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 8, 999, 0), "unknown kind 999"),
    ],
)
def test_nonsense_is_refused_at_once(tmp_path: Path, contents: bytes, finding: str) -> None:
    file = tmp_path / "nonsense.gguf"
    file.write_bytes(contents)
    assert finding in refusal(file)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_leaves_no_unfinished_conversion(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    number = getattr(signal, name)

    def interrupted(*arguments: Any, **keywords: Any) -> None:
        assert len(list(gguf.cache_folder(whole).glob(f"{unfinished.PREFIX}*"))) == 1
        os.kill(os.getpid(), number)

    monkeypatch.setattr(gguf, "user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", interrupted)
    outside = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored
    try:
        with pytest.raises(SystemExit) as ended:
            gguf.convert(whole, torch.float32)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, outside)
    assert ended.value.code == 128 + number
    assert list(gguf.cache_folder(whole).iterdir()) == []
