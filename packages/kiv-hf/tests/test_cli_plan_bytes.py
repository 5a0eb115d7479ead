"""Bytes that ``kiv plan`` predicts, against caches that were filled and against sums made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cli_plan_configs import configs, llama
from kiv_hf import KIVCache, KIVConfig, use_kiv
from kiv_hf.cli.sizes.layers import LayerSizes
from kiv_hf.cli.sizes.model import ModelSizes, model_sizes
from kiv_hf.cli.sizes.shapes import trace
from kiv_hf.cli.sizes.stores import Held, held
from kiv_reference.errors import KIVUnsupportedError
from transformers import AutoModelForCausalLM, DynamicCache, JetMoeConfig, LlamaConfig

SMALL = KIVConfig(hot_tokens=24, page_tokens=8, index_channels=6, candidate_tokens=16, retrieve_tokens=8)


def filled(config: Any, kiv_config: KIVConfig, chunks: list[int]) -> KIVCache:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="kiv")
    model = use_kiv(model.eval())
    cache = KIVCache(model.config, kiv_config)
    with torch.no_grad():
        for count in chunks:
            model(torch.arange(count)[None] % 50, past_key_values=cache, use_cache=True)
    return cache


def bytes_of_others(cache: DynamicCache) -> int:
    """Count the bytes of every tensor that transformers' own layers hold, and of states beside KIV's stores."""
    found = 0
    for layer in cache.layers:
        parts = [] if hasattr(layer, "store") else [getattr(layer, name, None) for name in ("keys", "values")]
        for name in ("conv_states", "recurrent_states"):
            parts += (getattr(layer, name, None) or {}).values()
        found += sum(part.nbytes for part in parts if part is not None)
    return found


@pytest.mark.parametrize("kind", configs())
def test_every_kind_of_layer_holds_what_is_predicted(kind: str) -> None:
    config = configs()[kind]
    sizes = model_sizes(config, torch.float32)
    cache = filled(config, SMALL, [60, 60, 30])
    need, memory = held(sizes.ours, SMALL, torch.float32, 150, 60), cache.memory()
    assert not sizes.problem
    assert (need.device, need.ram, need.pages_on_disk) == memory
    assert need.index > 0
    assert need.pages_in_ram > 0
    assert sizes.others_bytes(150, torch.float32) == bytes_of_others(cache)
    shapes = [tuple(layer.store.state.shape)[1:4] for layer in cache.kiv_layers().values()]  # pyright: ignore[reportAttributeAccessIssue]
    assert [(layer.heads, layer.key_width, layer.value_width) for layer in sizes.ours] == shapes


@pytest.mark.parametrize("kind", configs())
def test_a_plain_cache_holds_what_is_predicted(kind: str) -> None:
    config = configs()[kind]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(torch.arange(40)[None] % 50, past_key_values=cache, use_cache=True)
    sizes = model_sizes(config, torch.float32)
    assert sum(layer.bytes_at(40, torch.float32) for layer in sizes.layers) == bytes_of_others(cache)


@pytest.mark.parametrize("kind", ["linear", "both in one"])
def test_states_are_counted_in_the_dtype_that_they_have(kind: str) -> None:
    config = configs()[kind]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    cache = DynamicCache(config=config)
    with torch.no_grad():
        model(torch.arange(40)[None] % 50, past_key_values=cache, use_cache=True)
    sizes = model_sizes(config, torch.bfloat16)
    assert sum(layer.bytes_at(40, torch.bfloat16) for layer in sizes.layers) == bytes_of_others(cache)
    assert any(layer.wide for layer in sizes.layers)


@pytest.mark.parametrize("hot_tokens", [0, 16, 40])
@pytest.mark.parametrize("page_tokens", [4, 24])
@pytest.mark.parametrize("chunk", [7, 50, 500])
@pytest.mark.parametrize("retrieve_tokens", [8, None])
def test_windows_and_pages_of_every_size(
    hot_tokens: int, page_tokens: int, chunk: int, retrieve_tokens: int | None
) -> None:
    config = replace(SMALL, hot_tokens=hot_tokens, page_tokens=page_tokens, retrieve_tokens=retrieve_tokens)
    need = held(model_sizes(llama(), torch.float32).ours, config, torch.float32, 455, chunk)
    memory, most = fill_stores(config, 455, chunk)
    assert (need.device, need.ram, need.pages_on_disk) == memory
    assert need.device <= most <= need.device + need.growth


def test_while_one_layer_reads_others_hold_more_than_at_the_end() -> None:
    """Of 300 tokens none stay hot; of 250, which a layer holds while another one reads on, two do."""
    config = replace(SMALL, hot_tokens=0, sink_tokens=0, page_tokens=4, retrieve_tokens=None)
    need = held(model_sizes(llama(), torch.float32).ours, config, torch.float32, 300, 50)
    memory, most = fill_stores(config, 300, 50)
    assert need.device == memory[0] == 0
    assert most <= need.growth <= 1.2 * most


def fill_stores(config: KIVConfig, tokens: int, chunk: int) -> tuple[tuple[int, int, int], int]:
    """Fill the stores of `llama()`, and return bytes by tier at the end, and the most on the device on the way."""
    torch.manual_seed(0)
    most = 0
    with KIVCache(llama(), config) as cache:
        for start in range(0, tokens, chunk):
            key = torch.randn(1, 2, min(chunk, tokens - start), 16)
            for layer in cache.kiv_layers().values():
                layer.store.append(key, key)
                most = max(most, cache.memory().device)
                layer.store.attend(torch.cat([key, key], dim=1), scale=1.0)
        return tuple(cache.memory()), max(most, cache.memory().device)  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("disk_bytes", [None, 10**9])
@pytest.mark.parametrize("ram_bytes", [100_000, 250_000])
def test_what_goes_to_disk_is_predicted_within_a_page(ram_bytes: int, disk_bytes: int | None) -> None:
    config = replace(SMALL, ram_bytes=ram_bytes, disk_bytes=disk_bytes)
    need = held(model_sizes(llama(), torch.float32).ours, config, torch.float32, 900, 60)
    (device, ram, disk), _ = fill_stores(config, 900, 60)
    page_bytes = 2 * 2 * 16 * 4 * 8
    assert need.device == device
    assert abs(need.ram - ram) <= page_bytes
    assert abs(need.pages_on_disk - disk) <= page_bytes
    assert need.ram <= ram_bytes
    assert disk > 10 * page_bytes
    # Rows of the last steps: four steps of 2 * 16 keys and 8 values, with 16 bytes noted of each, in an eighth at most.
    assert need.rows == (0 if disk_bytes else expected_rows(ram_bytes))


def expected_rows(ram_bytes: int) -> int:
    most, rows = 4 * 2 * (2 * 16 + 8) * (16 * 4 + 16), 0
    for _ in range(4):
        share = min(most, ram_bytes // 8 - rows)
        rows += share if share >= most // 2 else 0
    return rows


def test_a_long_context_is_counted_by_hand() -> None:
    """Llama-3.1-8B's geometry at 128K tokens, in bfloat16, by arithmetic that shares nothing with the code."""
    layers = tuple(LayerSizes(True, 32, 8, 128, 128, 8 * 256) for _ in range(32))
    need = held(layers, KIVConfig(), torch.bfloat16, 131_072, 512)
    pages = (131_072 - 2048 - 4) // 512
    # Of a page and head: 32 bytes of codes a token, number and step of 64 channels, base and mean value.
    assert need.index == 32 * 8 * pages * (512 * 32 + 64 * (2 + 4) + 4 * (128 + 128))
    # Room for the window, a page more and four sinks, which have room for 16 at least but no more than there are.
    assert need.window == 32 * 8 * 2 * 128 * 2 * (2048 + 512 + 4)
    assert need.buffers == 8 * (1024 * 128 + 4096 * 128) * 2
    assert need.pages_in_ram == 32 * 8 * 2 * 128 * 2 * 512 * pages
    # One position of 64, and in RAM the errors of a page and what tables note of it.
    assert need.notes == 32 * (2048 * 8 * 128 * 2 + pages * (8 * 128 * 4 + 18))
    assert (need.rows, need.pages_on_disk) == (0, 0)


def test_a_context_that_is_not_cold_holds_no_page() -> None:
    need = held(model_sizes(llama(), torch.float32).ours, SMALL, torch.float32, 24, 24)
    assert (need.index, need.pages_in_ram, need.pages_on_disk) == (0, 0, 0)
    assert need.window > 0
    assert held((), SMALL, torch.float32, 1000, 24) == Held()


def test_where_a_pass_breaks_off_fields_tell() -> None:
    """JetMoe asks for numbers in a way that has no answer."""
    config = JetMoeConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_key_value_heads=2,
        kv_channels=8, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    sizes = model_sizes(config, torch.float32)
    assert "meta" in sizes.problem
    assert [(layer.heads, layer.key_width, layer.value_width) for layer in sizes.layers] == [(2, 8, 8)] * 2


def test_where_fields_do_not_tell_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no number")

    from transformers.models.minicpm3 import modeling_minicpm3

    monkeypatch.setattr(modeling_minicpm3.MiniCPM3Model, "forward", broken)
    with pytest.raises(KIVUnsupportedError, match="no number"):
        model_sizes(configs()["latent"], torch.float32)


def test_a_pass_takes_no_memory() -> None:
    """A model of 400 billion weights."""
    config = LlamaConfig(hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, num_attention_heads=128,
                         num_key_value_heads=8, vocab_size=128256)  # fmt: skip
    traced = trace(config)
    assert all(weight.is_meta for weight in traced.model.parameters())
    sizes: ModelSizes = model_sizes(config, torch.bfloat16)
    assert sizes.token_bytes(torch.bfloat16) == 126 * 2 * 8 * 128 * 2
    assert sizes.weights.plain + sizes.weights.linear > 4 * 10**11
