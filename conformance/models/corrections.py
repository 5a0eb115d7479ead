"""Fields of tiny configurations that their names do not decide, for each model type that needs some.

Keys are dotted paths of parts of the configuration, "" for the whole.
"""

from __future__ import annotations

from typing import Any

from .corrections_parts import OTHER_PARTS, TEXT_PART
from .recurring import COMPASS, CONVOLUTIONS, FEW_EXPERTS, HALF_ROPE, HYBRID, INDEXER, LATENT
from .shrink import DELETE

Corrections = dict[str, dict[str, Any]]

_WHOLE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), LATENT),
    **dict.fromkeys(("glm_moe_dsa", "minicpm3", "youtu"), LATENT),
    "mistral4": {  # of a head's 24 numbers 8 are turned
        **LATENT,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "partial_rotary_factor": 1 / 3, "llama_4_scaling_beta": 0.1,
            "factor": 4.0, "original_max_position_embeddings": 512, "mscale": 1.0, "mscale_all_dim": 1.0,
        },
    },
    "deepseek_v2": {**LATENT, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "bailing_hybrid": {**LATENT, **FEW_EXPERTS, "num_experts": 4, "num_expert_group": 1, "n_group": 1},
    "kimi_linear": {**LATENT, **FEW_EXPERTS, "num_expert_group": 1},
    "longcat_flash": {
        "num_key_value_heads": 4, "num_layers": 2, "num_hidden_layers": 4, "head_dim": 8, "qk_head_dim": 24,
    },
    "big_bird": {"attention_type": "original_full"},  # the only one with a cache
    "bamba": {"attn_layer_indices": [1, 3], "layers_block_type": DELETE},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "layer_types": DELETE, "use_mamba_kernels": False},
    "cohere_compass_text": COMPASS,
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
    "lfm2": {"layer_types": CONVOLUTIONS, "full_attn_idxs": DELETE},
    "lfm2_moe": {"layer_types": CONVOLUTIONS},
    "mamba2": {"num_heads": 8, "head_dim": 16, "chunk_size": 8, "n_groups": 2},
    "hrm_text": {"num_hidden_layers": 2, "num_layers_per_stack": DELETE, "H_cycles": 2, "L_cycles": 2},
    "reformer": {
        "axial_pos_embds_dim": (32, 32), "axial_pos_shape": (16, 32), "attn_layers": ["local", "lsh", "local", "lsh"],
    },
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        "attention_hidden_size": 128, "attention_head_dim": 32, "num_key_value_heads": 4, "use_mamba_kernels": False,
        "layers_block_type": HYBRID,
    },
    "zamba2": {
        "num_key_value_heads": 4, "mamba_headdim": DELETE, "attention_head_dim": DELETE,
        "attention_hidden_size": DELETE, "hybrid_layer_ids": DELETE, "use_mamba_kernels": False,
        "layers_block_type": HYBRID,
    },
    "zaya": {"num_experts_per_tok": 1, "moe_intermediate_size": 64},
    "qwen4_exp_text": INDEXER,
    "minimax_m3_vl_text": {
        "index_n_heads": 2, "rope_parameters": HALF_ROPE, "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
    },
    "xlstm": {"chunk_size": 16, "hidden_size": 64, "num_heads": 4, "qk_dim_factor": 1.0, "v_dim_factor": 1.0},
}  # fmt: skip


def corrections_for(model_type: str) -> Corrections:
    """Return the corrections of `model_type`."""
    found: Corrections = {path: dict(fields) for path, fields in OTHER_PARTS.get(model_type, {}).items()}
    if model_type in _WHOLE:
        found[""] = dict(_WHOLE[model_type])
    if model_type in TEXT_PART:
        found["text_config"] = dict(TEXT_PART[model_type])
    return found
