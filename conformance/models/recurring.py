"""Groups of configuration fields that several model types need."""

from __future__ import annotations

from .shrink import DELETE

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
MROPE = {**ROPE, "mrope_section": [4, 2, 2]}
HALF_ROPE = {**ROPE, "partial_rotary_factor": 0.5}
# Multi-head latent attention: as many KV heads as heads, and widths that the class adds up itself.
LATENT = {"num_key_value_heads": 4, "head_dim": DELETE, "qk_head_dim": DELETE}
FEW_EXPERTS = {"num_experts_per_tok": 2, "num_experts_per_token": 2}
HYBRID = ["linear_attention", "hybrid"] * 2
CONVOLUTIONS = ["conv", "full_attention"] * 2
INDEXER = {
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}  # fmt: skip
COMPASS = {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
    "rope_parameters": {"sliding_attention": dict(ROPE), "full_attention": dict(ROPE)},
}
