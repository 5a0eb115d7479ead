"""Every mistake ends in one message with the rule, the value and the remedy, and exit code 2."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from cli_models import save_llama, save_unservable
from kiv_hf.cli.app import app
from typer.testing import CliRunner

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("And the earth was without form, and void. " * 10, encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal comes before work starts: no test of this file may load weights."""

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("the model was loaded before the mistake was found")

    monkeypatch.setattr("kiv_hf.cli.ask.load_model", refuse)


def message(*arguments: Any, stdin: str | None = None) -> str:
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["ask", *map(str, arguments)], input=stdin)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def test_missing_file(model: Path, tmp_path: Path) -> None:
    assert "file that exists; got" in message("-m", model, "-f", tmp_path / "none.txt", "Why?")


def test_folder_in_place_of_a_file(model: Path, tmp_path: Path) -> None:
    assert "got the folder" in message("-m", model, "-f", tmp_path, "Why?")


@pytest.mark.parametrize("contents", [b"", b"\xef\xbb\xbf"])
def test_empty_file(model: Path, text: Path, contents: bytes) -> None:
    text.write_bytes(contents)
    assert "must hold some text; got an empty" in message("-m", model, "-f", text, "Why?")


@pytest.mark.parametrize("contents", [b"\n", b" \n\t "])
def test_blank_file(model: Path, text: Path, contents: bytes) -> None:
    text.write_bytes(contents)
    said = message("-m", model, "-f", text, "Why?")
    assert "got nothing but blanks and line breaks in" in said
    assert "empty" not in said


def test_empty_standard_input(model: Path) -> None:
    assert "got an empty standard input" in message("-m", model, "-f", "-", "Why?", stdin="")


@pytest.mark.parametrize(
    ("contents", "finding"),
    [(b"PK\x03\x04\xff\xfe", "offset 4 that is not UTF-8"), (b"abc\x00d", "NUL byte at offset 3")],
)
def test_binary_file(model: Path, text: Path, contents: bytes, finding: str) -> None:
    text.write_bytes(contents)
    assert finding in message("-m", model, "-f", text, "Why?")


@pytest.mark.parametrize("question", ["", "  \n"])
def test_empty_question(model: Path, text: Path, question: str) -> None:
    assert "question must not be empty" in message("-m", model, "-f", text, question)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "a/b/c", " "])
def test_missing_model_folder(text: Path, name: str) -> None:
    assert "folder that exists" in message("-m", name, "-f", text, "Why?")


def test_missing_gguf(text: Path, tmp_path: Path) -> None:
    assert "file that exists" in message("-m", tmp_path / "model.gguf", "-f", text, "Why?")


def test_file_that_is_no_gguf(text: Path) -> None:
    assert "must be a .gguf" in message("-m", text, "-f", text, "Why?")


def test_broken_gguf(text: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"this is no model")
    assert "that transformers can load; got" in message("-m", broken, "-f", text, "Why?")


def test_folder_without_a_config(text: Path, tmp_path: Path) -> None:
    assert "config.json" in message("-m", tmp_path, "-f", text, "Why?")


def test_hub_out_of_reach(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in message("-m", "nobody/no-such-model", "-f", text, "Why?")


@pytest.mark.parametrize(
    ("kind", "problem"),
    [("encoder-decoder", "an encoder and a decoder"), ("no attention", "no layer of full attention")],
)
def test_model_that_cannot_be_served(text: Path, tmp_path: Path, kind: str, problem: str) -> None:
    assert problem in message("-m", save_unservable(tmp_path / "unservable", kind), "-f", text, "Why?")


def test_context_beyond_memory(model: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=50_000))
    said = message("-m", model, "-f", text, "--max-new-tokens", "100", "Why?")
    # 2 layers, 2 KV heads, keys and values of width 8, float32.
    assert "(256 B a token)" in said
    assert "50 KB free on cpu" in said


def test_context_beyond_the_ram_budget(model: Path, text: Path) -> None:
    said = message("-m", model, "-f", text, "--hot-tokens", "32", "--ram-bytes", "10KB", "--impl", "reference", "Why?")
    assert "--ram-bytes 10 KB" in said


@pytest.mark.parametrize(
    ("arguments", "finding"),
    [
        (["--hot-tokens", "-1"], "hot_tokens must be an integer >= 0"),
        (["--max-missed-mass", "2"], "max_missed_mass"),
        (["--retrieve-tokens", "99999"], "must not exceed candidate_tokens"),
        (["--index-channels", "0"], "index_channels must be an integer >= 1"),
        (["--candidate-tokens", "0"], "candidate_tokens must be an integer >= 1"),
        (["--candidate-pages", "9"], "No such option"),
        (["--prefill", "fast"], "prefill must be one of"),
        (["--exact", "--retrieve-tokens", "5"], "leave out --retrieve-tokens"),
        (["--ram-bytes", "many"], "is no size"),
        (["--dtype", "int8"], "'int8' is not one of"),
        (["--impl", "quick"], "impl must name an implementation"),
        (["--chunk-tokens", "0"], "chunk-tokens"),
        (["--max-new-tokens", "0"], "max-new-tokens"),
        (["--device", "abacus"], "'abacus', which is no device"),
        (["--device", "mps"], "'mps', which is no device"),
        (["--device", "xpu"], "'xpu', which is no device"),
        (["--device", "hpu"], "'hpu', which is no device"),
        (["--device", "cuda:99"], "'cuda:99', which is no device"),
        (["--device", "meta"], "'meta', which is no device"),
        (["--device-bytes", "0"], "must fit into --device-bytes 0 B"),
        (["--hot-tokens", "32", "--ram-bytes", "0", "--disk-bytes", "1KB"], "must fit into --disk-bytes 1 KB"),
        (["--spill-dir", "/no/such/folder"], "spill_dir must be an existing folder"),
        (["--spill-dir", "/dev/shm"], "spill_dir must be on a disk"),
    ],
)
def test_bad_option(model: Path, text: Path, arguments: list[str], finding: str) -> None:
    assert finding in message("-m", model, "-f", text, *arguments, "Why?")
