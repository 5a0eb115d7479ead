"""Corrections for the parts of composite configurations: text, vision, audio and what joins them."""

from __future__ import annotations

from typing import Any

from .recurring import COMPASS, CONVOLUTIONS, HALF_ROPE, INDEXER, LATENT, MROPE, ROPE
from .shrink import DELETE

_KOSMOS_TEXT = {"layers": 4, "embed_dim": 64, "attention_heads": 4, "ffn_dim": 64}

TEXT_PART: dict[str, dict[str, Any]] = {
    **{name: {"rope_parameters": MROPE} for name in ("glm46v", "glm4v", "glm_ocr", "glmga", "paddleocr_vl")},
    **{name: {"rope_parameters": MROPE} for name in ("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker")},
    "glm4v_moe": {"rope_parameters": {**HALF_ROPE, "mrope_section": [2, 1, 1]}},
    **dict.fromkeys(("kimi_k25", "mistral_large4"), LATENT),
    "mistral3": {"sliding_window": None},
    "idefics2": {"sliding_window": None},
    "step3p7": {"sliding_window": 12},
    "unlimited_ocr": {"num_key_value_heads": 4},
    "hunyuan_vl": {"head_dim": 16, "rope_parameters": MROPE},
    "cohere_compass": COMPASS,
    "qwen4_exp": INDEXER,
    "dots3_note": {"num_key_value_heads": 4},
    "deepseek_ocr2": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "num_experts_per_tok": 2},
    "ernie4_5_vl_moe": {"rope_parameters": {**ROPE, "mrope_section": [2, 2, 4]}},
    "exaone4_5": {"model_type": "exaone4_5_text"},
    "glm5_next": {
        "num_key_value_heads": 4, "qk_rope_head_dim": 0, "qk_head_dim": DELETE, "head_dim": DELETE, "index_topk": 16,
    },
    "lfm2_vl": {"layer_types": CONVOLUTIONS, "full_attn_idxs": DELETE},
    "minimax_m3_vl": {
        "index_n_heads": 2, "rope_parameters": HALF_ROPE, "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
    },
    "diffusion_gemma": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    "kosmos-2": _KOSMOS_TEXT,
    "kosmos-2.5": _KOSMOS_TEXT,
}  # fmt: skip
"""Fields of the part `text_config`."""

_VISION_64 = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}

OTHER_PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "chameleon": {"": {"vocabulary_map": {"<image>": 100, "IMGIMGA": 101}}},
    "granite4_vision": {
        "": {"deepstack_layer_map": [], "downsample_rate": "4/8", "spatial_target_layers": [0, 1, 2, 3]},
    },
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 16}},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
    },
    "dots3_note": {
        "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_out_dim": 64, "adapter_input_size": 64},
    },
    "inkling2": {"vision_config": {"text_hidden_size": 64}},
    "molmo2": {"adapter_config": {**_VISION_64, "vision_feature_layer": [-1, -2], "text_hidden_size": 64}},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "nemo_speechlm": {"audio_config.diarization_config.head_config": {"audio_hidden_size": 64}},
    "qwen2_5_omni": {"thinker_config.text_config": {"rope_parameters": MROPE}},
    "dia": {
        "decoder_config": {
            "cross_hidden_size": 64,
            "cross_head_dim": 16,
            "cross_num_attention_heads": 4,
            "cross_num_key_value_heads": 4,
        }
    },
    "moonshine_streaming": {"": {"num_key_value_heads": 4}},
    "musicflamingo": {"audio_config": {"model_type": "audioflamingo3_encoder"}},
    "qwen2_vl": {"vision_config": {"embed_dim": 64}},
    "vision-encoder-decoder": {"decoder": {"is_decoder": True, "add_cross_attention": True}},
    "speech-encoder-decoder": {"decoder": {"is_decoder": True, "add_cross_attention": True}},
    "kyutai_speech_to_text": {"": {"sliding_window": 64}},
}
"""For each type, fields of other parts: path of the part -> fields; "" is the whole."""
