"""BlipTextSelfAttention: with a cache its self-attention is KIV's; anything else is its own."""

# Arguments of the base class that have no effect here stay in **kwargs.
# pyright: reportIncompatibleMethodOverride=false
from __future__ import annotations

from typing import Any

import torch
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from .common import additive
from .projections import bert_self_attention


class KIVBlipTextSelfAttention(BlipTextSelfAttention):
    """`BlipTextSelfAttention` whose self-attention in a decoder is KIV's."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Attend to the text itself, or, as the class does, to an image.

        One class serves BLIP's decoder and its encoder of text, which has no cache and whose mask is not causal.
        """
        if encoder_hidden_states is None and past_key_values is not None:
            return bert_self_attention(self, hidden_states, past_key_values, attention_mask)
        masks = [additive(mask, hidden_states) for mask in (attention_mask, encoder_attention_mask)]
        return super().forward(
            hidden_states, masks[0], encoder_hidden_states, masks[1], past_key_values=past_key_values, **kwargs
        )


CLASSES = {BlipTextSelfAttention: KIVBlipTextSelfAttention}
