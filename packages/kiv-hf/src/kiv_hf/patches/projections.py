"""Self-attention of the BART and BERT families: three projections, a cache, a softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kiv_reference.errors import KIVUnsupportedError, refuse

from .common import attend, self_attention_cache, split_heads

if TYPE_CHECKING:
    import torch


def bart_self_attention(
    module: Any,
    hidden_states: torch.Tensor,
    past_key_values: Any = None,
    attention_mask: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj`` of a decoder layer's own attention."""
    query = split_heads(module.q_proj(hidden_states), module.head_dim)
    key = split_heads(module.k_proj(hidden_states), module.head_dim)
    value = split_heads(module.v_proj(hidden_states), module.head_dim)
    if past_key_values is not None:
        key, value = self_attention_cache(past_key_values).update(key, value, module.layer_idx)
    output = attend(
        module, query, key, value, attention_mask, float(module.scaling), getattr(module, "is_decoder", True)
    )
    return module.out_proj(output.reshape(*hidden_states.shape[:-1], -1)), None


def mvp_self_attention(
    module: Any, hidden_states: torch.Tensor, attn_prompt: torch.Tensor | None = None, **more: Any
) -> tuple[torch.Tensor, None]:
    """Attend as `bart_self_attention` does.

    Raises
    ------
    KIVUnsupportedError
        The model puts learned keys before those of its text.
    """
    if attn_prompt is not None:
        raise refuse(
            KIVUnsupportedError,
            "A KIV layer attends to what its cache returned",
            "learned prompt keys put before them (MvpConfig.use_prompt)",
            "Use DynamicCache with this model.",
        )
    return bart_self_attention(module, hidden_states, **more)


def bert_self_attention(
    module: Any,
    hidden_states: torch.Tensor,
    past_key_values: Any = None,
    attention_mask: torch.Tensor | None = None,
    sinusoidal_pos: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend with ``query``, ``key`` and ``value`` of a layer that works as a decoder.

    Parameters
    ----------
    sinusoidal_pos : optional
        Rotary positions, as RoFormer passes them.
    """
    width = int(module.attention_head_size)
    query = split_heads(module.query(hidden_states), width)
    key = split_heads(module.key(hidden_states), width)
    value = split_heads(module.value(hidden_states), width)
    if sinusoidal_pos is not None:
        rotate = module.apply_rotary_position_embeddings
        if module.rotary_value:
            query, key, value = rotate(sinusoidal_pos, query, key, value)
        else:
            query, key = rotate(sinusoidal_pos, query, key)
    if past_key_values is not None:
        key, value = self_attention_cache(past_key_values).update(key, value, module.layer_idx)
    output = attend(module, query, key, value, attention_mask, width**-0.5, getattr(module, "is_decoder", True))
    return output.reshape(*hidden_states.shape[:-1], -1), None
