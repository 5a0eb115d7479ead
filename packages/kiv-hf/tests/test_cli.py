"""``kiv ask`` from end to end, on a tiny random model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from cli_models import NATIVE_TOKENS, save_llama, tokenizer
from kiv_hf.cli.app import app
from kiv_hf.cli.prompt import compose
from transformers import AutoModelForCausalLM, DynamicCache
from typer.testing import CliRunner, Result

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "In the beginning God created the heaven and the earth. And the earth was without form, and void. " * 4
SMALL = [
    "--hot-tokens", "64", "--page-tokens", "16", "--candidate-tokens", "120", "--retrieve-tokens", "20",
    "--max-new-tokens", "8", "--chunk-tokens", "100",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return file


def run(*arguments: Any, stdin: str | None = None) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["ask", *map(str, arguments)], input=stdin)


def prompt_tokens(question: str, chat: bool = False) -> int:
    return len(compose(tokenizer(chat), TEXT, question))  # a token for each character


def test_answers_and_accounts(model: Path, text: Path) -> None:
    result = run("-m", model, "-f", text, *SMALL, "--index-channels", "3", "What was void?")
    assert result.exit_code == 0, result.output
    read = prompt_tokens("What was void?")
    cold = (read + 8 - 1 - 64 - 4) // 16 * 16
    assert f"{read} read" in result.stderr
    assert f"{cold} cold in RAM" in result.stderr
    # Three channels of eight, of a model that was never trained: the index ranks badly, and says so.
    kept = rf"cold tokens .* (\d+) candidates of {cold}, 20 attended exactly; candidates doubled in ([\d.]+)%"
    told = re.search(kept, result.stderr)
    assert told is not None
    assert int(told[1]) == pytest.approx(120 * (1 + float(told[2]) / 100), abs=0.6)
    # 2 layers of 2 KV heads, keys and values of width 8 in float32: 256 bytes a token.
    assert re.search(r"bytes by tier.* RAM, 0 B disk", result.stderr)
    mass = re.search(r"([\d.]+)% held exactly, ([\d.]+)% estimated", result.stderr)
    assert mass is not None
    assert float(mass[1]) + float(mass[2]) == pytest.approx(100, abs=0.02)
    assert float(mass[2]) > 0
    assert re.search(r"[\d.]+ ms a token", result.stderr)


@pytest.mark.parametrize("impl", ["fast", "compare"])
def test_what_computes_a_step_is_chosen_and_told(model: Path, text: Path, impl: str) -> None:
    result = run("-m", model, "-f", text, *SMALL, "--impl", impl, "--ops", "torch", "What was void?")
    assert result.exit_code == 0, result.output
    assert re.search(r"operations +│ +torch +│", result.stderr)
    assert re.search(r"exact attention +│ +flash for cpu \(float32\) +│", result.stderr)


def test_the_reference_is_told_by_its_name(model: Path, text: Path) -> None:
    result = run("-m", model, "-f", text, *SMALL, "--impl", "reference", "What was void?")
    assert re.search(r"operations +│ +ReferencePool +│", result.stderr)


def test_operations_that_cannot_serve_are_refused_before_the_model_is_loaded(
    model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kiv_hf.cli.ask.load", None)
    monkeypatch.setattr("kiv_fast.ops.choice.load", lambda: None)
    missing = run("-m", model, "-f", text, "--ops", "cpu", "What was void?")
    assert missing.exit_code == 2
    assert 'ops="cpu" needs the operations that are compiled' in missing.stderr
    other = run("-m", model, "-f", text, "--impl", "reference", "--ops", "torch", "What was void?")
    assert other.exit_code == 2
    assert "ops chooses operations of impl='fast' alone" in other.stderr
    unknown = run("-m", model, "-f", text, "--ops", "fortran", "What was void?")
    assert unknown.exit_code == 2
    assert "'fortran' is not one of auto, torch, cpu, triton" in unknown.stderr


def test_exact_mode_answers_as_a_plain_cache(model: Path, text: Path) -> None:
    question = "What was void?"
    result = run("-m", model, "-f", text, *SMALL[:4], *SMALL[-4:], "--exact", question)
    assert result.exit_code == 0, result.output
    assert re.search(r"cold tokens .* \d+, all attended exactly", result.stderr)
    plain: Any = AutoModelForCausalLM.from_pretrained(model)
    ids = tokenizer()(compose(tokenizer(), TEXT, question), return_tensors="pt").input_ids
    with torch.no_grad():
        output = plain.generate(
            ids, past_key_values=DynamicCache(config=plain.config), max_new_tokens=8, do_sample=False
        )
    answer = str(tokenizer().decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    assert result.stdout == answer + "\n"
    assert "100.00% held exactly, 0.00% estimated" in result.stderr


def test_standard_input_is_a_text_like_any_other(model: Path, text: Path) -> None:
    from_file = run("-m", model, "-f", text, *SMALL, "What was void?")
    from_stdin = run("-m", model, "-f", "-", *SMALL, "What was void?", stdin=TEXT)
    assert from_stdin.exit_code == 0, from_stdin.output
    assert from_file.stdout == from_stdin.stdout


def test_a_chat_template_is_used(text: Path, tmp_path: Path) -> None:
    result = run("-m", save_llama(tmp_path / "chat", chat=True), "-f", text, *SMALL, "What was void?")
    assert result.exit_code == 0, result.output
    assert prompt_tokens("What was void?", chat=True) != prompt_tokens("What was void?")
    assert f"{prompt_tokens('What was void?', chat=True)} read" in result.stderr


def test_no_decode_step_is_no_error(model: Path, text: Path) -> None:
    result = run("-m", model, "-f", text, *SMALL[:4], "--max-new-tokens", "1", "What was void?")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("no step") == 3


def test_beyond_the_native_length_is_a_warning(model: Path, text: Path) -> None:
    within = run("-m", model, "-f", text, *SMALL, "What was void?")
    text.write_text(TEXT * 2, encoding="utf-8")
    beyond = run("-m", model, "-f", text, *SMALL, "What was void?")
    assert beyond.exit_code == 0, beyond.output
    assert f"more than the {NATIVE_TOKENS}" in beyond.stderr
    assert "more than the" not in within.stderr


@pytest.mark.parametrize("narrow", [True, False])
def test_a_cpu_without_instructions_for_a_dtype_is_told(
    model: Path, text: Path, narrow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the dtypes that are read, that alone; float32 every CPU computes."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: narrow)
    told = run("-m", model, "-f", text, *SMALL, "--dtype", "bfloat16", "What was void?")
    assert told.exit_code == 0, told.output
    assert ("no instructions for bfloat16" in told.stderr) is not narrow
    assert "no instructions" not in run("-m", model, "-f", text, *SMALL, "What was void?").stderr


def test_progress_goes_to_standard_error(model: Path, text: Path) -> None:
    result = run("-m", model, "-f", text, *SMALL, "What was void?")
    read = prompt_tokens("What was void?")
    assert f"{read}/{read} tokens" in result.stderr
    assert "tokens/s" in result.stderr
    assert "What KIV held" in result.stderr
    assert not any(word in result.stdout for word in ("Reading", "What KIV held", "tokens/s"))
