"""Whatever is wrong with a model's files is one message that names them and the remedy, in bounded time and memory."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from cli_models import save_llama
from gguf import GGUFWriter
from kiv_hf.cli import template
from kiv_hf.cli.app import app
from typer.testing import CliRunner

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model"), chat=True)


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


def message(model: Any, tmp_path: Path) -> str:
    text = tmp_path / "text.txt"
    text.write_text("In the beginning.", encoding="utf-8")
    arguments = ["ask", "-m", str(model), "-f", str(text), "--max-new-tokens", "2", "Why?"]
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    assert str(model) in result.stderr
    return result.stderr


def with_template(model: Any, source: str) -> Any:
    (model / "chat_template.jinja").write_text(source, encoding="utf-8")
    return model


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("{% for m in", "TemplateSyntaxError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{{ raise_exception('Roles must\\nalternate') }}", "Roles must"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].content.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages[0]['role'] }}", "leaves it out"),
        ("{{ 'a' * 10 ** 11 }}", "MemoryError"),
        ("{{ messages[0]['content'] * 10 ** 6 }}", "more than 1,048,576 characters"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes more than 10 s"),
    ],
)
def test_a_chat_template_in_error(model: Path, tmp_path: Path, source: str, finding: str) -> None:
    said = message_of_template(model, tmp_path, source)
    assert finding in said
    assert "chat" in said
    assert "choose another model" in said


def message_of_template(model: Any, tmp_path: Path, source: str) -> str:
    with_template(model, source)
    text = tmp_path / "text.txt"
    text.write_text("In the beginning.", encoding="utf-8")
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["ask", "-m", str(model), "-f", str(text), "Why?"])
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == ""
    return result.stderr


def test_a_template_sees_what_transformers_gives_it() -> None:
    from cli_models import tokenizer

    made = tokenizer(chat=True)
    turn = [{"role": "user", "content": "Why?"}]
    for source in (made.chat_template, "{{ eos_token }}{{ messages | tojson }}{{ add_generation_prompt }}"):
        made.chat_template = source
        expected = made.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        assert template.render(made, "Why?") == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", "two"),
        ("num_hidden_layers", 0),
        ("num_attention_heads", 0),
        ("num_key_value_heads", 0),
        ("num_attention_heads", True),
        ("num_attention_heads", 3),
        ("hidden_size", -1),
        ("hidden_size", 1.5),
        ("head_dim", "wide"),
        ("vocab_size", 10**12),
        ("rope_parameters", 5),
        ("rope_parameters", {"rope_type": "none such"}),
        ("hidden_act", "none such"),
        ("layer_types", ["full_attention"] * 9),
        ("layer_types", 7),
        ("model_type", ["llama"]),
        ("model_type", "none such"),
        ("dtype", {}),
    ],
)
def test_a_malformed_field(model: Path, tmp_path: Path, field: str, value: Any) -> None:
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), field: value}), encoding="utf-8")
    said = message(model, tmp_path)
    assert "again" in said or "another" in said


@pytest.mark.parametrize("contents", ["", "{", "[]", "7", "[" * 100_000, '"text"', "\x1b"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_file_of_nonsense(model: Path, tmp_path: Path, name: str, contents: str) -> None:
    (model / name).write_text(contents, encoding="utf-8")
    message(model, tmp_path)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_weights_that_are_cut(model: Path, tmp_path: Path, length: int) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    said = message(model, tmp_path)
    assert "model.safetensors" in said
    assert "truncated" in said or length == 0


def test_weights_with_a_broken_header(model: Path, tmp_path: Path) -> None:
    file = model / "model.safetensors"
    contents = bytearray(file.read_bytes())
    contents[20] = 0
    file.write_bytes(contents)
    assert "damaged" in message(model, tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "model.safetensors"])
def test_a_pipe_in_place_of_a_file(model: Path, tmp_path: Path, name: str) -> None:
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    said = message(model, tmp_path)
    assert name in said
    assert "pipe" in said


@pytest.mark.parametrize(("layers", "heads"), [(10**9, 4), (2, 0)])
def test_a_gguf_out_of_all_proportion(tmp_path: Path, layers: int, heads: int) -> None:
    file = tmp_path / "model.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(layers)
    writer.add_head_count(heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert "count" in message(file, tmp_path)


def test_a_gguf_with_too_little_in_it(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    message(file, tmp_path)
