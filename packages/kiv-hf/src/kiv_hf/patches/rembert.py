"""RemBertSelfAttention: its self-attention is KIV's, its cross-attention its own."""

# Arguments of the base class that have no effect here stay in **kwargs.
# pyright: reportIncompatibleMethodOverride=false
from __future__ import annotations

from typing import Any

import torch
from transformers.models.rembert.modeling_rembert import RemBertSelfAttention

from .common import additive
from .projections import bert_self_attention


class KIVRemBertSelfAttention(RemBertSelfAttention):
    """`RemBertSelfAttention` whose self-attention is KIV's."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Attend to the text itself, or, as the class does, to the states of an encoder."""
        if encoder_hidden_states is None:
            return bert_self_attention(self, hidden_states, past_key_values, attention_mask)
        mask = additive(attention_mask, hidden_states)
        return super().forward(hidden_states, mask, encoder_hidden_states, past_key_values, **kwargs)


CLASSES = {RemBertSelfAttention: KIVRemBertSelfAttention}
