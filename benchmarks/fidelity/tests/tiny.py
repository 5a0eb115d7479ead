"""Tiny models with random weights, of the two kinds that the benchmarks ask."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}


def tiny_llama(vocabulary: int = 97) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, num_hidden_layers=2, num_key_value_heads=2, **SIZES)
    ).eval()


def tiny_gemma(sliding_window: int) -> Gemma3ForCausalLM:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=97,
        num_hidden_layers=4,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=sliding_window,
        layer_types=["sliding_attention", "full_attention"] * 2,
        **SIZES,
    )
    model = Gemma3ForCausalLM(config).eval()
    model.set_attn_implementation("sdpa")
    return model
