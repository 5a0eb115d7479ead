"""Of which models ``kiv plan`` can say something, and what it reads of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gguf
import huggingface_hub.constants
from cli_plans import MACHINE, K, planned, run
from transformers import LlamaConfig, LlavaConfig, T5Config
from transformers.utils import hub

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

COMMIT = "0123456789" * 4


def test_models_that_cannot_be_planned(tmp_path: Path) -> None:
    unknown = run("-m", "nobody/nothing", "--context", 1000, *MACHINE)
    assert unknown.exit_code == 2
    assert "--model must be a hub id" in unknown.output
    assert "connection" in unknown.output
    assert run("-m", tmp_path / "none", "--context", 1000, *MACHINE).exit_code == 2
    T5Config().save_pretrained(tmp_path / "t5")
    both = run("-m", tmp_path / "t5", "--context", 1000, *MACHINE)
    assert both.exit_code == 2
    assert "an encoder and a decoder" in both.output


def test_of_a_hub_only_the_configuration_is_asked_for(
    llama8b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of the hub with a config.json alone, and a note of every name that is looked for."""
    snapshot = tmp_path / "models--some--model" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text((llama8b / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "models--some--model" / "refs").mkdir()
    (tmp_path / "models--some--model" / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    asked: set[str] = set()
    cached_files = hub.cached_files

    def noted(path_or_repo_id: Any, filenames: list[str], **more: Any) -> Any:
        asked.update(filenames)
        return cached_files(path_or_repo_id, filenames, **more)

    monkeypatch.setattr(hub, "cached_files", noted)
    found = planned("-m", "some/model", "--context", 32 * K, *MACHINE, "--weights", "4bit")
    assert "--model some/model" in found["command"]
    assert asked == {"config.json"}


def test_quantised_weights_are_as_wide_as_they_are_saved(llama8b: Path, tmp_path: Path) -> None:
    saved = json.loads((llama8b / "config.json").read_text(encoding="utf-8"))
    saved["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(saved), encoding="utf-8")
    found = planned("-m", tmp_path, "--context", 32 * K, *MACHINE)
    maps, others = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336), 2 * 128256 * 4096 + 65 * 4096
    assert found["predicted_bytes"]["device"]["weights"] == round(maps * (4 + 20 / 128) / 8 + others * 2)
    saved["quantization_config"] = {"quant_method": "spectral"}
    (tmp_path / "config.json").write_text(json.dumps(saved), encoding="utf-8")
    unknown = run("-m", tmp_path, "--context", 32 * K, *MACHINE)
    assert unknown.exit_code == 2
    assert "'spectral'" in unknown.output
    assert "--weights 4bit or 8bit" in unknown.output
    planned("-m", tmp_path, "--context", 32 * K, *MACHINE, "--weights", "4bit")


def test_a_model_with_images_is_for_python(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    vision: dict[str, Any] = {**sizes, "image_size": 8, "patch_size": 4}
    LlavaConfig(vision_config=vision, text_config=LlamaConfig(vocab_size=50, **sizes)).save_pretrained(tmp_path)
    result = run("-m", tmp_path, "--context", 8 * K, *MACHINE)
    assert result.exit_code == 0, result.output
    assert "kiv_hf.KIVCache, in Python" in result.stdout
    assert "Knobs: device_bytes=" in result.stdout
    assert planned("-m", tmp_path, "--context", 8 * K, *MACHINE)["command"] is None


def test_a_gguf_becomes_dense(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(50)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = planned("-m", path, "--context", 8 * K, *MACHINE)
    maps = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    assert maps * 2 < found["predicted_bytes"]["device"]["weights"] < 2 * maps * 2 + 4 * 50 * 32 * 2
    assert "makes dense weights of it" in " ".join(found["notes"])
