"""Configurations of tiny models, for what ``kiv plan`` knows of theirs."""

from __future__ import annotations

from typing import Any

from transformers import (
    BloomConfig,
    DeepseekV3Config,
    FalconH1Config,
    Gemma3TextConfig,
    LlamaConfig,
    MiniCPM3Config,
    MixtralConfig,
    Qwen3NextConfig,
)

ATTENTION: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
HALF: dict[str, Any] = {**ATTENTION, "head_dim": 8}
LATENT: dict[str, Any] = {
    **ATTENTION, "num_key_value_heads": 4, "head_dim": 8, "q_lora_rank": None, "kv_lora_rank": 12,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 6,
}  # fmt: skip


def llama(**more: Any) -> LlamaConfig:
    """Return a tiny model's configuration, with other fields."""
    return LlamaConfig(**{**ATTENTION, **more})


def configs() -> dict[str, Any]:
    """Return tiny models of every kind of layer that the sizes tell apart."""
    experts: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return {
        "GQA": llama(),
        "sliding": Gemma3TextConfig(
            **ATTENTION, sliding_window=10, layer_types=["sliding_attention"] * 3 + ["full_attention"]
        ),
        "latent": MiniCPM3Config(**LATENT),
        "latent, experts": DeepseekV3Config(
            **LATENT, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, moe_intermediate_size=16,
            first_k_dense_replace=1,
        ),
        "experts": MixtralConfig(**ATTENTION, num_local_experts=4, num_experts_per_tok=2),
        "linear": Qwen3NextConfig(
            **ATTENTION, **experts, shared_expert_intermediate_size=16, linear_num_value_heads=4,
            linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
            layer_types=["linear_attention", "full_attention"] * 2,
        ),
        "both in one": FalconH1Config(
            **HALF, mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=16,
            mamba_chunk_size=8,
        ),
        "position bias": BloomConfig(vocab_size=50, hidden_size=32, n_layer=3, n_head=4),
    }  # fmt: skip
