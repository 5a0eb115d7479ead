"""The same comparison through `generate`: tiny random models with ``impl="compare"`` (SPEC 11.2)."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from kiv_hf import KIVCache
from kiv_hf.compare.pool import ComparePool, KIVDivergenceError
from kiv_reference import KIVConfig, ReferencePool, StorePool
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from .expect import share
from .strategies import configs

if TYPE_CHECKING:
    from collections.abc import Callable

    from .target import Target

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    # Larger weights than at the start of a training: attention picks tokens instead of averaging them.
    "initializer_range": 0.35,
}
MIXED: dict[str, Any] = {"sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}
MODELS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES),
    "qwen3": lambda: Qwen3Config(**SIZES),
    "gemma2 (softcap)": lambda: Gemma2Config(**SIZES, **MIXED, attn_logit_softcapping=2.0, query_pre_attn_scalar=8),
    "gemma3 (one KV head)": lambda: Gemma3TextConfig(**{**SIZES, "num_key_value_heads": 1}, **MIXED),
    "gpt-oss (sink logits)": lambda: GptOssConfig(
        **SIZES,
        **MIXED,
        num_local_experts=2,
        num_experts_per_tok=1,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
}


@functools.cache
def model(name: str, dtype: torch.dtype) -> Any:
    """Return a tiny random model with the attention "kiv"."""
    torch.manual_seed(5)
    made = AutoModelForCausalLM.from_config(MODELS[name]()).eval().to(dtype)
    made.set_attn_implementation("kiv")
    return made


def prompt(length: int, seed: int, batch: int = 1, padding: int = 0) -> dict[str, torch.Tensor]:
    """Return token ids and mask, the first sequence padded on the left."""
    ids = torch.randint(2, 61, (batch, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


def generate(
    name: str, factory: Callable[[KIVConfig], StorePool] | str, config: KIVConfig, dtype: torch.dtype, **settings: Any
) -> KIVCache:
    """Generate with a comparing cache."""
    one = model(name, dtype)
    cache = KIVCache(one.config, config, impl=factory)
    with torch.inference_mode():
        one.generate(**{"max_new_tokens": 6, "do_sample": False, "past_key_values": cache, **settings})
    return cache


@pytest.mark.parametrize("name", MODELS)
@share(0.1)
@given(
    config=configs(hot_tokens=st.integers(0, 8)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    text=st.builds(
        lambda length, seed, batch, padding: prompt(length, seed, batch, min(padding, length - 1)),
        st.integers(1, 60), st.integers(0, 99), st.integers(1, 2), st.integers(0, 5),
    ),
    beams=st.sampled_from([1, 1, 3]),
    chunk=st.sampled_from([None, None, 16]),
)  # fmt: skip
def test_generate_compares_equal(
    target: Target,
    name: str,
    config: KIVConfig,
    dtype: torch.dtype,
    text: dict[str, torch.Tensor],
    beams: int,
    chunk: int | None,
) -> None:
    """Greedy and beam search, batches with padding, prompts whole and in chunks."""
    settings: dict[str, Any] = {**text, "num_beams": beams}
    if chunk is not None:
        settings["prefill_chunk_size"] = chunk
    cache = generate(name, functools.partial(ComparePool, candidate=target.factory), config, dtype, **settings)
    parts = cache.tokens()
    event(f"cold tokens: {parts.cold_ram + parts.cold_disk > 0}")


SMALL = KIVConfig(hot_tokens=4, sink_tokens=2, page_tokens=4, index_channels=3, candidate_tokens=12, retrieve_tokens=5)


@pytest.mark.parametrize(
    ("clause", "change"),
    [
        ("4.6", {"retrieve_tokens": 4}),
        ("4.4", {"candidate_tokens": 11}),
        ("4.4", {"index_channels": 1}),
        ("2.2", {"hot_tokens": 3, "sink_tokens": 3}),
        ("5.1", {"tail": "none"}),
    ],
)
def test_the_first_divergence_stops_generate(clause: str, change: dict[str, Any]) -> None:
    """An implementation that obeys another configuration is stopped, with clause, layer, step and head."""

    def other(config: KIVConfig) -> StorePool:
        return ReferencePool(dataclasses.replace(config, **change))

    factory = functools.partial(ComparePool, candidate=other)
    with pytest.raises(KIVDivergenceError, match=f"SPEC {clause}: .*layer .*step .*kv_head") as stopped:
        generate("llama", factory, SMALL, torch.float32, **prompt(60, 3))
    assert "margin" in str(stopped.value) or "expected" in str(stopped.value)


def test_the_binding_has_it_by_name(target: Target) -> None:
    """``impl="compare"`` is one argument; it compares the fast implementation with the reference."""
    if target.name == "reference":
        pytest.skip("the name compares kiv_fast: run with --impl fast")
    cache = generate("llama", "compare", SMALL, torch.float32, **prompt(40, 1))
    assert cache.tokens().cold_ram + cache.tokens().cold_disk > 0
