"""No input keeps ``kiv ask`` busy for ever, drives the terminal, or leaves something behind for good."""

from __future__ import annotations

import io
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from cli_models import tokenizer
from kiv_hf.cli import text
from kiv_hf.cli.app import app
from kiv_hf.cli.display import AnswerStreamer
from kiv_hf.cli.models import gguf, manifest, unfinished
from kiv_hf.cli.terminal import printable
from kiv_reference.errors import KIVUsageError
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31mred\x7f\r\x00\x85"


def test_a_pipe_that_nobody_writes_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(KIVUsageError, match=r"pipe or a device.*--file -"):
        text.read_text(str(pipe))


def test_a_device_without_end() -> None:
    with pytest.raises(KIVUsageError, match="/dev/zero, which is a pipe or a device"):
        text.read_text("/dev/zero")


def test_a_text_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "long.txt"
    monkeypatch.setattr(text, "LARGEST_BYTES", 100)
    file.write_text("a" * 100, encoding="utf-8")
    assert text.read_text(str(file)) == "a" * 100
    file.write_text("a" * 101, encoding="utf-8")
    with pytest.raises(KIVUsageError, match="at most 100 bytes; got more than that"):
        text.read_text(str(file))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a" * 101)))
    with pytest.raises(KIVUsageError, match="in standard input"):
        text.read_text("-")


def test_control_characters_are_dropped() -> None:
    controls = [chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)]]
    assert printable("".join(controls)) == "\t\n"
    assert printable("a é 日 🎉 \u00a0") == "a é 日 🎉 \u00a0"


def test_the_answer_does_not_drive_the_terminal() -> None:
    class Reader:
        def decode(self, ids: torch.Tensor, **keywords: Any) -> str:
            return HOSTILE + "\n"

    screen = io.StringIO()
    streamer = AnswerStreamer(Reader(), Console(file=screen, width=500))
    streamer.put(torch.tensor([1]))
    streamer.put(torch.tensor([1]))
    streamer.end()
    assert "red" in screen.getvalue()
    assert screen.getvalue() == printable(screen.getvalue())


@pytest.mark.parametrize("where", ["file", "model"])
def test_neither_do_names_in_errors(tmp_path: Path, where: str) -> None:
    plain = tmp_path / "text.txt"
    plain.write_text("a", encoding="utf-8")
    hostile = f"/no/such/{HOSTILE}".replace("\0", "")
    names = ["-m", hostile, "-f", str(plain)] if where == "model" else ["-m", str(tmp_path), "-f", hostile]
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["ask", *names, "Why?"])
    assert result.exit_code == 2, result.exception
    assert "owned" in result.stderr
    assert result.stderr == printable(result.stderr)


@pytest.fixture
def fake_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Any]]:
    """A file that stands for a ``.gguf``; the list of what was converted from it."""
    made = []
    config = LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8
    )

    def load(*arguments: Any, **keywords: Any) -> LlamaForCausalLM:
        made.append(arguments)
        return LlamaForCausalLM(config)

    monkeypatch.setattr(gguf, "user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *arguments, **keywords: tokenizer())
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    return file, made


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)


@pytest.mark.parametrize("damage", [cut, flip, os.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", manifest.NAME])
def test_a_damaged_conversion_is_made_again(
    fake_gguf: tuple[Path, list[Any]], damage: Callable[..., Any], name: str
) -> None:
    file, made = fake_gguf
    folder = gguf.convert(file, torch.float32)
    whole = {part.name: part.stat().st_size for part in folder.iterdir()}
    damage(folder / name)
    assert gguf.converted(file) is None
    assert gguf.convert(file, torch.float32) == folder
    assert len(made) == 2
    assert {part.name: part.stat().st_size for part in folder.iterdir()} == whole
    assert gguf.converted(file) == folder


def test_large_files_are_checked_by_size(fake_gguf: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "HASHED_BYTES", 10)
    file, _ = fake_gguf
    folder = gguf.convert(file, torch.float32)
    assert gguf.converted(file) == folder
    cut(folder / "model.safetensors")
    assert gguf.converted(file) is None


def test_what_a_killed_process_left_is_swept(fake_gguf: tuple[Path, list[Any]]) -> None:
    file, _ = fake_gguf
    parent, elsewhere = gguf.cache_folder(file), gguf.cache_folder(file).parent / "another-file"
    parent.mkdir(parents=True)
    elsewhere.mkdir()
    began = unfinished._began(os.getpid())
    assert began is not None
    machine, pid = unfinished._machine(), os.getpid()
    ended = 2**22 + 1  # beyond the largest number of a process
    stale = [
        parent / f".converting-{machine}-{ended}-{began}-a",
        elsewhere / f".converting-{machine}-{pid}-{began - 100}-b",  # the number was given again
        elsewhere / ".converting-old",
    ]
    at_work = [
        elsewhere / f".converting-{machine}-{pid}-{began}-c",
        elsewhere / f".converting-0123-{ended}-{began}-d",  # of another machine, which only time can tell
    ]
    for folder in stale + at_work:
        folder.mkdir()
        (folder / "part").write_text("", encoding="utf-8")
    os.utime(stale[2], (long_ago := time.time() - 2 * unfinished.FORGOTTEN_S, long_ago))
    gguf.convert(file, torch.float32)
    assert [folder.exists() for folder in stale] == [False] * 3
    assert [folder.exists() for folder in at_work] == [True] * 2


def test_a_folder_in_work_names_its_process(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with unfinished.scratch_folder(tmp_path / "a") as scratch:
        unfinished.sweep(tmp_path)
        assert scratch.is_dir()
    assert not scratch.exists()
