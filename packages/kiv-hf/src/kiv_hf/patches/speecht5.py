"""SpeechT5Attention: a decoder's self-attention is KIV's; cross-attention and the encoder's are its own."""

# Arguments of the base class that have no effect here stay in **kwargs.
# pyright: reportIncompatibleMethodOverride=false
from __future__ import annotations

from typing import Any

import torch
from transformers.models.speecht5.modeling_speecht5 import SpeechT5Attention

from .common import additive
from .projections import bart_self_attention


class KIVSpeechT5Attention(SpeechT5Attention):
    """`SpeechT5Attention` whose self-attention in a decoder is KIV's."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Attend to the text itself, or, as the class does, to or in an encoder: only there positions have a bias."""
        if key_value_states is None and position_bias is None:
            return bart_self_attention(self, hidden_states, past_key_values, attention_mask)
        mask = additive(attention_mask, hidden_states)
        return super().forward(hidden_states, key_value_states, past_key_values, mask, position_bias, **kwargs)


CLASSES = {SpeechT5Attention: KIVSpeechT5Attention}
