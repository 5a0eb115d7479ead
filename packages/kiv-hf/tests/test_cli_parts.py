"""The parts of the command line that a run on a tiny model does not show: sizes, estimates, traces, conversions."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from cli_models import tokenizer
from kiv_fast import FastPool
from kiv_hf import KIVCache, KIVConfig
from kiv_hf.cli.display import cold_text, kept_text
from kiv_hf.cli.estimate import check_memory, estimate
from kiv_hf.cli.models import gguf
from kiv_hf.cli.tally import ColdTokens, Tally
from kiv_hf.cli.units import format_bytes, parse_bytes
from kiv_reference import ReferencePool
from kiv_reference.errors import KIVBudgetError
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("12", 12), ("2KB", 2000), ("2 KiB", 2048), ("1.5MiB", 3 * 2**19), ("3gb", 3 * 10**9), ("1TiB", 2**40)],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1", "1e9", "5 apples", "1,000"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 KB"), (1_234_567, "1.23 MB"), (999_600, "1 MB")]
)
def test_sizes_are_written(count: int, text: str) -> None:
    assert format_bytes(count) == text


def llama_config(**more: Any) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    return LlamaConfig(vocab_size=50, num_key_value_heads=2, head_dim=8, **sizes, **more)


def test_the_estimate_counts_what_the_cache_then_holds() -> None:
    model_config, config = llama_config(), KIVConfig(hot_tokens=16, page_tokens=4, index_channels=6)
    need = estimate(model_config, config, torch.float32, tokens=100, chunk_tokens=50)
    model = LlamaForCausalLM(model_config).eval()
    model.set_attn_implementation("kiv")
    cache = KIVCache(model.config, config, impl="fast")
    with torch.no_grad():
        for ids in torch.arange(100)[None].split(50, dim=1):
            model(ids % 50, past_key_values=cache)
    assert need.weights == sum(weight.nbytes for weight in model.parameters())
    assert need.token_bytes == 3 * 2 * 2 * 8 * 4
    memory = cache.memory()
    # Beside 80 cold tokens RAM has one sampled query, the error radii, and 18 bytes of tables for each page.
    assert need.cold + 3 * (2 * 8 * 4 + 20 * (2 * 8 * 4 + 18)) == memory.ram
    assert need.near + need.cold == memory.device + memory.ram


@pytest.mark.parametrize("channels", [1, 5, 8, 12, 20, 64])
@pytest.mark.parametrize("page_tokens", [4, 16, 24])
def test_the_index_is_estimated_as_it_is_booked(channels: int, page_tokens: int) -> None:
    """What a store holds more, and is estimated to hold more, than one that retrieves nothing and has no index."""
    config = KIVConfig(hot_tokens=0, sink_tokens=0, page_tokens=page_tokens, index_channels=channels)
    model_config = LlamaConfig(
        hidden_size=80, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=20
    )
    data, estimated, held = torch.randn(1, 2, 240, 20), list[int](), list[int]()
    for one in (config, replace(config, retrieve_tokens=None)):
        estimated.append(estimate(model_config, one, torch.float32, 240, 240).near)
        pool = FastPool(one)
        store = pool.layer_store()
        store.append(data, data)
        store.attend(torch.cat([data, data], dim=1), scale=1.0)
        memory = pool.memory()
        held.append(memory.device + memory.ram)
    assert estimated[0] - estimated[1] == held[0] - held[1] > 0


def test_sliding_layers_count_their_window_only() -> None:
    config = Gemma3TextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=1, head_dim=8, sliding_window=10,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
    )  # fmt: skip
    everything_cold = KIVConfig(hot_tokens=0, sink_tokens=0, page_tokens=1, retrieve_tokens=64)
    need = estimate(config, everything_cold, torch.bfloat16, 1000, 100)
    # Codes of 8 channels in 16 places, number and step of each channel; base, mean value and error; what tables note.
    row_bytes, page_bytes = 2 * 8 * 2, 8 * (16 // 2 + 6) + 4 * 3 * 8 + 18
    assert (need.token_bytes, need.cold) == (row_bytes, 1000 * row_bytes)
    sampled, read_at_once = 1000 // 64 * 8 * 2, (64 + 4096) * 8 * 2
    # Of a window of 10 tokens transformers keeps the 9 that the next one sees.
    assert need.near == 5 * 9 * row_bytes + 1000 * page_bytes + sampled + read_at_once
    exact = estimate(config, replace(everything_cold, retrieve_tokens=None), torch.bfloat16, 1000, 100)
    assert exact.near == 5 * 9 * row_bytes + 1000 * 18


def test_a_spilling_implementation_needs_no_more_ram_than_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    config = KIVConfig(ram_bytes=10_000)
    need = estimate(llama_config(), config, torch.float32, 100_000, 512)
    free = need.total - need.cold + 10_000
    monkeypatch.setattr("kiv_hf.cli.estimate.free_bytes", lambda device: free)
    check_memory(need, config, "cpu", spills=True)
    monkeypatch.setattr("kiv_hf.cli.estimate.free_bytes", lambda device: free - 1)
    with pytest.raises(KIVBudgetError, match="100,000 tokens needs about"):
        check_memory(need, config, "cpu", spills=True)
    with pytest.raises(KIVBudgetError, match="no disk tier"):
        check_memory(need, config, "cpu", spills=False)


def test_on_a_device_cold_pages_count_in_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    need = estimate(llama_config(), KIVConfig(), torch.float32, 100_000, 512, 8192)
    assert need.work < estimate(llama_config(), KIVConfig(), torch.float32, 100_000, 512).work
    monkeypatch.setattr("kiv_hf.cli.estimate.free_bytes", lambda device: need.total - need.cold)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=need.cold))
    check_memory(need, KIVConfig(), "cuda", spills=True)
    with pytest.raises(KIVBudgetError, match="needs about"):
        check_memory(need, KIVConfig(), "cpu", spills=True)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=need.cold - 1))
    with pytest.raises(KIVBudgetError, match="Cold pages must fit into RAM"):
        check_memory(need, KIVConfig(), "cuda", spills=True)


def test_the_trace_says_whether_the_watched_tokens_were_retrieved() -> None:
    config = KIVConfig(hot_tokens=8, sink_tokens=2, page_tokens=4, candidate_tokens=8, retrieve_tokens=4)
    torch.manual_seed(0)
    key, value = torch.randn(2, 1, 2, 90, 8)
    wanted = 41
    cache = KIVCache(llama_config(), config, impl="reference")
    store = cache.pool.layer_store()
    store.append(key, value)
    store.append(key[:, :, :1], value[:, :, :1])
    query = 20 * torch.cat([key[:, :1, wanted : wanted + 1], key[:, 1:, 80:81]], dim=1)  # head 1 looks elsewhere
    store.attend(query, scale=1.0)
    tally = Tally(range(wanted, wanted + 1), page_tokens=4)
    tally.add({0: store.report})
    (block,) = store.report.blocks
    assert (block.mode, tally.retrievals) == ("retrieve", 2)
    assert wanted in block.selected_positions[0, 0]
    assert wanted not in block.candidate_positions[0, 1]
    assert (tally.candidate_hits, tally.selected_hits) == (1, 1)
    assert tally.widened == block.widened.sum()
    assert tally.cold_tokens == (80, 8 * (1 + tally.widened / 2), 4)
    assert tally.exact_mass is not None
    assert tally.estimated_mass is not None
    assert tally.exact_mass + tally.estimated_mass == pytest.approx(1)


def test_the_trace_counts_a_streamed_head_as_whole() -> None:
    """One head cannot hold the bound, the other can."""
    config = KIVConfig(
        hot_tokens=8, sink_tokens=2, page_tokens=4, candidate_tokens=8, retrieve_tokens=4, max_missed_mass=0.01
    )
    torch.manual_seed(0)
    key, value = torch.randn(2, 1, 2, 91, 8)
    store = ReferencePool(config).layer_store()
    store.append(key[:, :, :90], value[:, :, :90])
    store.append(key[:, :, 90:], value[:, :, 90:])
    store.attend(torch.cat([20 * key[:, :1, 41:42], 0 * key[:, 1:, :1]], dim=1), scale=1.0)
    (block,) = store.report.blocks
    assert block.streamed.tolist() == [[False, True]]
    tally = Tally(range(41, 42), page_tokens=4)
    tally.add({0: store.report})
    taken = int((block.selected_positions[0, 0] >= 0).sum())
    assert tally.cold_tokens == (80, (int((block.candidate_positions[0, 0] >= 0).sum()) + 80) / 2, (taken + 80) / 2)
    assert (tally.candidate_hits, tally.selected_hits) == (2, 2)


def test_an_empty_trace_has_no_shares() -> None:
    assert Tally().exact_mass is None
    assert Tally().estimated_mass is None
    assert Tally().cold_tokens is None


@pytest.mark.parametrize(
    ("cold", "said"),
    [
        (None, "no step"),
        ((0, 0, 0), "none"),
        ((640, 640, 640), "640, all attended exactly"),
        ((12800, 4096, 1024.4), "4,096 candidates of 12,800, 1,024 attended exactly"),
    ],
)
def test_cold_tokens_in_words(
    cold: tuple[int, ...] | tuple[int, int, float] | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tally, "cold_tokens", cold and ColdTokens(*cold))
    assert cold_text(Tally()) == said


def test_doubled_candidates_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tally, "cold_tokens", ColdTokens(12800, 5120, 1024))
    said = "5,120 candidates of 12,800, 1,024 attended exactly; candidates doubled in 25.0%"
    assert cold_text(Tally(retrievals=8, widened=2)) == said


def test_rows_on_the_device_in_words() -> None:
    assert kept_text(2_000_000, Tally()) == "2 MB, not read yet"
    block = SimpleNamespace(
        key_bytes=1500, value_bytes=500, kept_bytes=1500, mode="exact", cold_pages=1, query_tokens=1,
        exact_mass=torch.ones(1), estimated_mass=torch.zeros(1), streamed=torch.ones(1, 1, dtype=torch.bool),
        candidate_positions=torch.zeros(1, 1, 0), selected_positions=torch.zeros(1, 1, 0),
    )  # fmt: skip
    tally: Any = Tally()
    for _ in range(2):
        tally.add({layer: SimpleNamespace(blocks=(block,)) for layer in range(3)})
    said = "2 MB, 75.0% of the bytes that steps read; 1.5 KB a token over the bus"
    assert kept_text(2_000_000, tally) == said


@pytest.fixture
def fake_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for a ``.gguf``, and transformers made to load a tiny model from it."""
    monkeypatch.setattr(gguf, "user_cache_path", lambda name: tmp_path / "cache")
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *arguments, **keywords: tokenizer())
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *arguments, **keywords: LlamaForCausalLM(llama_config())
    )
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    return file


def test_a_conversion_is_made_once(fake_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gguf.converted(fake_gguf) is None
    folder = gguf.convert(fake_gguf, torch.float32)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    assert gguf.converted(fake_gguf) == folder
    assert gguf.converted(fake_gguf, torch.bfloat16) is None

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise AssertionError("converted twice")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    assert gguf.convert(fake_gguf, torch.float32) == folder


def test_another_file_is_another_conversion(fake_gguf: Path) -> None:
    before = gguf.cache_folder(fake_gguf)
    fake_gguf.write_bytes(b"GGUF" + bytes(101))
    assert gguf.cache_folder(fake_gguf) != before


def test_a_conversion_that_breaks_off_leaves_nothing(fake_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def break_off(self: Any, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError("no space left on device")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", break_off)
    with pytest.raises(OSError, match="no space"):
        gguf.convert(fake_gguf, torch.float32)
    assert gguf.converted(fake_gguf) is None
    assert list(gguf.cache_folder(fake_gguf).iterdir()) == []
