"""FalconAttention: rotary positions, or ALiBi in further channels of queries and keys."""

# Arguments of the base class that have no effect here stay in **kwargs.
# pyright: reportIncompatibleMethodOverride=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from transformers.models.falcon.modeling_falcon import FalconAttention, apply_rotary_pos_emb  # pyright: ignore[reportUnknownVariableType]

from .common import attend
from .position_bias import with_position_bias

if TYPE_CHECKING:
    import torch


class KIVFalconAttention(FalconAttention):
    """`FalconAttention` whose scores and sums are KIV's; it keeps each shared KV head once."""

    @property
    def num_key_value_groups(self) -> int:
        """Query heads that share a KV head, for layers that are not KIV's."""
        return self.num_heads // int(self.num_kv_heads or 1)

    def forward(
        self,
        hidden_states: torch.Tensor,
        alibi: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        layer_past: Any = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Attend; a 4-D mask, made for a cache that is not KIV's, has the bias in it already."""
        batch, tokens, _ = hidden_states.shape
        query, key, value = (
            states.transpose(1, 2) for states in self._split_heads(self.query_key_value(hidden_states))
        )
        scale = float(self.inv_norm_factor)
        if self.new_decoder_architecture:  # every KV head comes once for each of its query heads
            key, value = (states[:, :: self.num_key_value_groups] for states in (key, value))
        if alibi is None:
            assert position_embeddings is not None
            query, key = cast("Any", apply_rotary_pos_emb)(query, key, *position_embeddings)
        elif attention_mask is None or attention_mask.ndim == 2:
            key, value = (states.repeat_interleave(self.num_heads // states.shape[1], 1) for states in (key, value))
            bias = alibi.view(batch, self.num_heads, -1)[..., -tokens:].double() * scale
            query, key = with_position_bias(query, key, bias, scale)
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        output = attend(self, query, key, value, attention_mask, scale)
        return self.dense(output.reshape(batch, tokens, -1)), None


CLASSES = {FalconAttention: KIVFalconAttention}
