"""Names of configuration fields and the small numbers they get.

transformers has no common alphabet of dimensions; every name below is the field of some configuration. Sizes are chosen
so that they fit each other in any combination: 4 heads of width 16 make the hidden size of 64.
"""

from __future__ import annotations

LAYERS = 4
VOCABULARY = 128
HIDDEN = 64
HEADS = 4
KV_HEADS = 2
HEAD_WIDTH = 16
EXPERTS = 4
WINDOW = 12  # far less than the text, so that sliding layers slide
POSITIONS = 512

LAYER_FIELDS = frozenset(
    [
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_layers",
        "decoder_layers",
        "encoder_layers",
        "num_decoder_layers",
        "num_encoder_layers",
        "num_global_layers",
    ]
)

_BY_VALUE: tuple[tuple[int, str], ...] = (
    (
        VOCABULARY,
        "vocab_size unpadded_vocab_size vocab_size_per_layer_input decoder_vocab_size audio_vocab_size text_vocab_size",
    ),
    (
        HIDDEN,
        "hidden_size d_model n_embd emb_dim embedding_dim word_embed_proj_dim embedding_size input_embedding_size "
        "output_embedding_size dim_model_base backbone_hidden_size hidden_size_global attention_hidden_size lru_width "
        "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner dff d_ff ffn_hidden_size "
        "dense_intermediate_size dim_ff feed_forward_size intermediate_size_mlp mlp_dim d_inner out_hidden_size",
    ),
    (
        32,
        "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size shared_experts_intermediate_size "
        "moe_shared_expert_intermediate_size pronunciation_vocab_size shape_vocab_size codebook_size base_channels "
        "image_size crop_size position_bias_num_buckets",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads attention_heads "
        "num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads num_query_groups "
        "linear_num_value_heads linear_num_heads conf_num_attention_heads",
    ),
    (
        KV_HEADS,
        "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads num_global_key_value_heads "
        "linear_num_key_heads n_mamba_heads",
    ),
    (
        HEAD_WIDTH,
        "head_dim attention_head_size d_head d_kv swa_head_dim dim_head kv_channels linear_head_dim swa_v_head_dim "
        "attention_head_dim linear_key_head_dim linear_value_head_dim mamba_d_head mamba_headdim mamba_head_dim "
        "qk_nope_head_dim v_head_dim index_head_dim kv_lora_rank o_lora_rank pronunciation_embed_dim shape_embed_dim "
        "mamba_d_state ssm_state_size state_size hidden_size_per_layer_input prompt_mid_dim router_hidden_size "
        "vector_quantization_hidden_dimension codebook_dim ple_embed_dim patch_size projection_dim floor_scale "
        "num_position_embeddings output_channels gated_norm_rank num_centroids attention_chunk_size",
    ),
    (2 * HEAD_WIDTH, "global_head_dim"),
    (24, "q_lora_rank qk_head_dim local_attention"),
    (
        8,
        "qk_rope_head_dim rotary_dim mamba_n_heads mamba_num_heads mamba_chunk_size mamba_dt_rank time_step_rank "
        "chunk_size adapter_rank block_size laurel_rank d_rel hc_lowrank upsample_groups "
        "make_ngram_vocab_size_divisible_by index_topk",
    ),
    (EXPERTS, "num_experts num_local_experts n_routed_experts moe_num_experts num_filters prompt_length prompt_types"),
    (
        2,
        "num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k top_k_experts expert_top_k zero_expert_num "
        "o_groups index_n_heads n_groups mamba_expand altup_num_inputs max_window_layers num_layers_per_stack "
        "num_codebooks depth num_blocks type_vocab_size num_kv_shared_layers index_topk_blocks",
    ),
    (
        1,
        "n_group topk_group num_expert_group mamba_n_groups mamba_ngroups num_dense_layers first_k_dense_replace "
        "moe_layer_start_index num_mem_blocks conf_num_hidden_layers",
    ),
    (0, "num_nextn_predict_layers"),
    (3, "hc_sinkhorn_iters"),
    (WINDOW, "sliding_window sliding_window_size attention_window_size window_size"),
    (
        POSITIONS,
        "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions model_max_length context_length "
        "original_max_position_embeddings",
    ),
    (
        64,
        "max_source_positions rel_extent encoder_hash_byte_group_vocab local_attention_window_len "
        "ngram_vocab_size_base vision_output_dim",
    ),
    (128, "mamba_d_ssm position_bias_max_distance"),
    (2048, "keep_window_size"),
    (LAYERS - 1, "moe_layer_end_index"),
    (4, "index_block_size segment_types split_ngram_parts centroid_intermediate_top_k"),
)

SIZES = {name: value for value, names in _BY_VALUE for name in names.split()}
"""Field name -> size."""

AT_MOST = frozenset(
    ["index_topk", "num_kv_shared_layers", "num_dense_layers", "first_k_dense_replace", "num_nextn_predict_layers"]
)
"""Fields that keep a smaller default: zero switches a feature off."""
