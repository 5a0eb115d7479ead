"""BloomAttention: ALiBi in further channels of queries and keys."""

# Arguments of the base class that have no effect here stay in **kwargs.
# pyright: reportIncompatibleMethodOverride=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.models.bloom.modeling_bloom import BloomAttention, dropout_add

from .common import attend
from .position_bias import with_position_bias

if TYPE_CHECKING:
    import torch


class KIVBloomAttention(BloomAttention):
    """`BloomAttention` whose scores and sums are KIV's."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        alibi: torch.Tensor,
        attention_mask: torch.Tensor | None,
        layer_past: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Attend with the bias ``alibi`` [B * H, 1, T], of which the last columns are those of the new tokens."""
        batch, tokens, _ = hidden_states.shape
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        bias = alibi.view(batch, self.num_heads, -1)[..., -tokens:]
        query, key = with_position_bias(query, key, bias, self.inv_norm_factor)
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        output = attend(self, query, key, value, attention_mask, self.inv_norm_factor)
        output = self.dense(output.reshape(batch, tokens, -1))
        return dropout_add(output, residual, self.hidden_dropout, self.training), None


CLASSES = {BloomAttention: KIVBloomAttention}
