"""MptAttention: ALiBi in further channels of queries and keys."""

# Arguments of the base class that have no effect here stay in **kwargs.
# pyright: reportIncompatibleMethodOverride=false
from __future__ import annotations

from typing import Any, cast

import torch
from transformers.models.mpt.modeling_mpt import MptAttention

from .common import attend
from .position_bias import with_position_bias


class KIVMptAttention(MptAttention):
    """`MptAttention` whose scores and sums are KIV's."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Attend with a bias that falls by one slope for each head and token.

        The model counts positions back from the last token. Counted from the first, a query's scores all change by the
        same number, which the softmax takes out.
        """
        batch, tokens, _ = hidden_states.shape
        mixed = self.Wqkv(hidden_states)
        if self.clip_qkv:
            mixed = mixed.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        query, key, value = (
            states.view(batch, tokens, self.n_heads, self.head_dim).transpose(1, 2) for states in mixed.chunk(3, dim=2)
        )
        scale = float(cast("Any", self).softmax_scale)
        past = 0 if past_key_values is None else past_key_values.get_seq_length(self.layer_idx)
        slopes = position_bias[:, 0, -1] - position_bias[:, 0, -2]  # [H]
        positions = torch.arange(past, past + tokens, device=slopes.device)
        query, key = with_position_bias(query, key, slopes[None, :, None] * positions, scale)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if attention_mask is not None and attention_mask.ndim == 4:
            attention_mask = ~attention_mask  # made for a cache that is not KIV's: True where attention must not look
        output = attend(self, query, key, value, attention_mask, scale)
        return self.out_proj(output.reshape(batch, tokens, -1)), None


CLASSES = {MptAttention: KIVMptAttention}
