"""Figures of a GPU beside the predicted ones: what is read, what is refused, and where they stand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from cli_plans import MACHINE, K, planned, run
from kiv_hf.cli.plan import measured
from kiv_hf.cli.plan.measured import FOLDER, load
from kiv_reference.errors import KIVUsageError
from transformers import LlamaConfig

if TYPE_CHECKING:
    from pathlib import Path


def stage(step_ms: float, chunk_ms: float = 100.0) -> dict[str, Any]:
    return {"at": "2027-01-02 03:04 UTC", "commit": "abc1234", "step_ms": step_ms, "prefill_chunk_ms": chunk_ms}


def gpu_run(card: str = "NVIDIA GeForce RTX 4070", **run: Any) -> dict[str, Any]:
    """Return what ``python -m benchmarks.gpu`` writes, as far as it matters here."""
    return {
        "run": {"card": card, "quick": False, "torch": "2.13.0", **run},
        "head": {},
        "stages": {
            "doctor": {"well": True},
            "conformance": {"passed": 900},
            f"smollm2 {32 * K} kiv": stage(7.5),
            f"smollm2 {32 * K} plain": stage(6.25),
            f"smollm2 {128 * K} kiv": {"at": "", "commit": "", "did not fit": "out of memory"},
            f"llama {32 * K} kiv": stage(41.0),
        },
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(measured.load, "__defaults__", (tmp_path,))
    return tmp_path


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("smollm2")
    LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=1 << 20, tie_word_embeddings=True, dtype="bfloat16",
    ).save_pretrained(made)  # fmt: skip
    return made


def put(folder: Path, content: Any, name: str = "card.json") -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def times(*arguments: Any) -> dict[str, dict[str, Any]]:
    return {one["card"]: one for one in planned(*arguments, *MACHINE)["times"]}


def test_what_is_packaged_can_be_read() -> None:
    """Whatever figures there are: a file that cannot be read would break every plan."""
    assert FOLDER.is_dir()
    assert len({(one.card, one.geometry, one.tokens, one.cache) for one in load()}) == len(load())


def test_measured_and_predicted_stand_side_by_side(folder: Path, smollm2: Path) -> None:
    put(folder, gpu_run())
    found = times("-m", smollm2, "--context", 32 * K)
    card = found["RTX 4070"]
    assert card["measured_decode_s"] == pytest.approx(7.5e-3)
    assert card["measured_plain_decode_s"] == pytest.approx(6.25e-3)
    assert card["measured_chunk_s"] == pytest.approx(0.1)
    assert "abc1234" in card["measured_by"]
    assert card["predicted_decode_s"]["graph"] > 0
    assert 0 < card["predicted_chunk_s"] < card["predicted_prefill_s"]
    assert {one["measured_decode_s"] for name, one in found.items() if name != "RTX 4070"} == {None}
    said = run("-m", smollm2, "--context", 32 * K, *MACHINE).stdout
    assert "7.5 ms" in said
    assert "6.25 ms" in said
    assert "Measured on RTX 4070 (abc1234, 2027-01-02 03:04 UTC, torch 2.13.0; random weights): " in said
    assert "1,024 tokens at the end of the prompt took 100 ms, predicted " in said
    narrow = run("-m", smollm2, "--context", 32 * K, *MACHINE, columns=60).stdout
    assert "7.5 ms" in narrow


@pytest.mark.parametrize(
    "more",
    [
        ["--context", 32 * K + 512], ["--context", 128 * K], ["--context", 32 * K, "--hot-tokens", 512],
        ["--context", 32 * K, "--weights", "4bit"], ["--context", 32 * K, "--dtype", "float32"],
    ],
)  # fmt: skip
def test_another_plan_is_not_what_was_measured(folder: Path, smollm2: Path, more: list[Any]) -> None:
    put(folder, gpu_run())
    assert all(one["measured_decode_s"] is None for one in times("-m", smollm2, *more).values())


def test_another_model_is_not_what_was_measured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    put(folder, gpu_run())
    made = tmp_path_factory.mktemp("other")
    LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=29, num_attention_heads=9,
        num_key_value_heads=3, dtype="bfloat16",
    ).save_pretrained(made)  # fmt: skip
    assert all(one["measured_decode_s"] is None for one in times("-m", made, "--context", 32 * K).values())


def test_a_card_that_is_not_predicted_has_measured_figures_alone(folder: Path, smollm2: Path) -> None:
    put(folder, gpu_run("NVIDIA H200"))
    put(folder, gpu_run("NVIDIA GeForce RTX 4070 Ti"), "another.json")
    found = times("-m", smollm2, "--context", 32 * K)
    assert list(found)[-2:] == ["GeForce RTX 4070 Ti", "H200"]
    assert found["H200"]["predicted_decode_s"] is None
    assert found["H200"]["measured_decode_s"] == pytest.approx(7.5e-3)
    assert found["RTX 4070"]["measured_decode_s"] is None


def broken() -> dict[str, Any]:
    whole = gpu_run()
    return {
        "a quick run": gpu_run(quick=True),
        "no run": {"stages": {}},
        "a list": [],
        "an unknown model": {**whole, "stages": {"gpt 1024 kiv": stage(1)}},
        "an unknown cache": {**whole, "stages": {"llama 1024 static": stage(1)}},
        "no time": {**whole, "stages": {"llama 1024 kiv": stage(0)}},
        "a time below 0": {**whole, "stages": {"llama 1024 kiv": stage(1, -1)}},
        "a time that is none": {**whole, "stages": {"llama 1024 kiv": stage("fast")}},  # pyright: ignore[reportArgumentType]
        "no commit": {**whole, "stages": {"llama 1024 kiv": {"step_ms": 1, "prefill_chunk_ms": 1, "at": ""}}},
    }


@pytest.mark.parametrize("kind", broken())
def test_what_is_no_run_on_a_gpu_is_refused(folder: Path, kind: str) -> None:
    put(folder, broken()[kind])
    with pytest.raises(KIVUsageError, match=r"card\.json"):
        load(folder)


def test_what_is_no_json_is_refused(folder: Path) -> None:
    (folder / "card.json").write_text("{", encoding="utf-8")
    with pytest.raises(KIVUsageError, match=r"card\.json"):
        load(folder)


def test_without_a_folder_there_is_nothing(tmp_path: Path) -> None:
    assert load(tmp_path / "none") == []
