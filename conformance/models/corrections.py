"""Fields of tiny configurations that their names do not decide, for each model type that needs some.

Keys are dotted paths of parts of the configuration, "" for the whole.
"""

from __future__ import annotations

from typing import Any

from .shrink import DELETE

Corrections = dict[str, dict[str, Any]]

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MROPE = {**_ROPE, "mrope_section": [4, 2, 2]}
_HALF_ROPE = {**_ROPE, "partial_rotary_factor": 0.5}
# Multi-head latent attention: as many KV heads as heads, and widths that the class adds up itself.
_LATENT = {"num_key_value_heads": 4, "head_dim": DELETE, "qk_head_dim": DELETE}
_FEW_EXPERTS = {"num_experts_per_tok": 2, "num_experts_per_token": 2}
_HYBRID = ["linear_attention", "hybrid"] * 2
_CONVOLUTIONS = ["conv", "full_attention"] * 2
_INDEXER = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}  # fmt: skip
_COMPASS = {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
    "rope_parameters": {"sliding_attention": dict(_ROPE), "full_attention": dict(_ROPE)},
}

_WHOLE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), _LATENT),
    **dict.fromkeys(("glm_moe_dsa", "minicpm3", "youtu", "mistral4"), _LATENT),
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "bailing_hybrid": {**_LATENT, **_FEW_EXPERTS, "num_experts": 4, "num_expert_group": 1, "n_group": 1},
    "kimi_linear": {**_LATENT, **_FEW_EXPERTS, "num_expert_group": 1},
    "longcat_flash": {
        "num_key_value_heads": 4, "num_layers": 2, "num_hidden_layers": 4, "head_dim": 8, "qk_head_dim": 24,
    },
    "big_bird": {"attention_type": "original_full"},  # the only one with a cache
    "bamba": {"attn_layer_indices": [1, 3], "layers_block_type": DELETE},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "layer_types": DELETE, "use_mamba_kernels": False},
    "cohere_compass_text": _COMPASS,
    "dots1": {
        "moe_intermediate_size": 32, "n_shared_experts": 1, "num_local_experts": DELETE, "n_routed_experts": 4,
        "num_experts": DELETE, "num_experts_per_tok": 2,
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "ministral": {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "mistral": {"sliding_window": None},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "lfm2": {"layer_types": _CONVOLUTIONS, "full_attn_idxs": DELETE},
    "lfm2_moe": {"layer_types": _CONVOLUTIONS},
    "mamba2": {"num_heads": 8, "head_dim": 16, "chunk_size": 8, "n_groups": 2},
    "hrm_text": {"num_hidden_layers": 2, "num_layers_per_stack": DELETE, "H_cycles": 2, "L_cycles": 2},
    "reformer": {
        "axial_pos_embds_dim": (32, 32), "axial_pos_shape": (16, 32), "attn_layers": ["local", "lsh", "local", "lsh"],
    },
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4, "use_mamba_kernels": False,
        "layers_block_type": _HYBRID,
    },
    "zamba2": {
        "num_key_value_heads": 4, "mamba_headdim": DELETE, "attention_head_dim": DELETE,
        "attention_hidden_size": DELETE, "hybrid_layer_ids": DELETE, "use_mamba_kernels": False,
        "layers_block_type": _HYBRID,
    },
    "zaya": {"num_experts_per_tok": 1, "moe_intermediate_size": 64},
    "qwen4_exp_text": _INDEXER,
    "minimax_m3_vl_text": {
        "index_n_heads": 2, "rope_parameters": _HALF_ROPE, "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
    },
    "xlstm": {"chunk_size": 16, "hidden_size": 64, "num_heads": 4, "qk_dim_factor": 1.0, "v_dim_factor": 1.0},
}  # fmt: skip

_TEXT_PART: dict[str, dict[str, Any]] = {
    **{name: {"rope_parameters": _MROPE} for name in ("glm46v", "glm4v", "glm_ocr", "glmga", "paddleocr_vl")},
    **{name: {"rope_parameters": _MROPE} for name in ("qwen2_vl", "qwen2_5_vl")},
    "glm4v_moe": {"rope_parameters": {**_HALF_ROPE, "mrope_section": [2, 1, 1]}},
    **dict.fromkeys(("kimi_k25", "mistral_large4"), _LATENT),
    "mistral4": _LATENT,
    "mistral3": {"sliding_window": None},
    "idefics2": {"sliding_window": None},
    "step3p7": {"sliding_window": 12},
    "unlimited_ocr": {"num_key_value_heads": 4},
    "hunyuan_vl": {"head_dim": 16},
    "cohere_compass": _COMPASS,
    "qwen4_exp": _INDEXER,
    "dots3_note": {"num_key_value_heads": 4},
    "deepseek_ocr2": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "ernie4_5_vl_moe": {"rope_parameters": _MROPE},
    "exaone4_5": {"model_type": "exaone4_5_text"},
    "glm5_next": {
        "num_key_value_heads": 4,
        "qk_rope_head_dim": 0,
        "qk_head_dim": DELETE,
        "head_dim": DELETE,
        "index_topk": 16,
    },
}

_OTHER_PARTS: dict[str, Corrections] = {
    "chameleon": {"": {"vocabulary_map": {"<image>": 100, "IMGIMGA": 101}}},
    "granite4_vision": {"": {"deepstack_layer_map": []}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 64}},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
    },
    "dots3_note": {
        "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_out_dim": 64, "adapter_input_size": 64},
    },
}


def corrections_for(model_type: str) -> Corrections:
    """Return the corrections of `model_type`."""
    found: Corrections = {path: dict(fields) for path, fields in _OTHER_PARTS.get(model_type, {}).items()}
    if model_type in _WHOLE:
        found[""] = dict(_WHOLE[model_type])
    if model_type in _TEXT_PART:
        found["text_config"] = dict(_TEXT_PART[model_type])
    return found
