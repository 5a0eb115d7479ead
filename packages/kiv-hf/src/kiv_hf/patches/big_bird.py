"""BigBirdSelfAttention, full attention, which is what a BigBird decoder uses; its cross-attention is its own."""

# Arguments of the base class that have no effect here stay in **kwargs.
# pyright: reportIncompatibleMethodOverride=false
from __future__ import annotations

from typing import Any

import torch
from transformers.models.big_bird.modeling_big_bird import BigBirdSelfAttention

from .common import additive
from .projections import bert_self_attention


class KIVBigBirdSelfAttention(BigBirdSelfAttention):
    """`BigBirdSelfAttention` whose self-attention is KIV's."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Attend to the text itself, or, as the class does, to the states of an encoder."""
        if encoder_hidden_states is None:
            return bert_self_attention(self, hidden_states, past_key_values, attention_mask)
        mask = additive(encoder_attention_mask, hidden_states)
        return super().forward(hidden_states, None, encoder_hidden_states, mask, past_key_values, **kwargs)


CLASSES = {BigBirdSelfAttention: KIVBigBirdSelfAttention}
