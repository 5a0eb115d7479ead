"""XGLMAttention: its self-attention is KIV's, its cross-attention its own."""

# Arguments of the base class that have no effect here stay in **kwargs.
# pyright: reportIncompatibleMethodOverride=false
from __future__ import annotations

from typing import Any

import torch
from transformers.models.xglm.modeling_xglm import XGLMAttention

from .common import additive
from .projections import bart_self_attention


class KIVXGLMAttention(XGLMAttention):
    """`XGLMAttention` whose self-attention is KIV's."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Attend to the text itself, or, as the class does, to the states of an encoder."""
        if key_value_states is None:
            return bart_self_attention(self, hidden_states, past_key_values, attention_mask)
        mask = additive(attention_mask, hidden_states)
        return super().forward(hidden_states, key_value_states, past_key_values, mask, **kwargs)


CLASSES = {XGLMAttention: KIVXGLMAttention}
