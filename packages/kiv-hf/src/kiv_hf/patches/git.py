"""GitSelfAttention, the text decoder's: it has no cross-attention."""

# Arguments of the base class that have no effect here stay in **kwargs.
# pyright: reportIncompatibleMethodOverride=false
from __future__ import annotations

from typing import Any

import torch
from transformers.models.git.modeling_git import GitSelfAttention

from .projections import bert_self_attention


class KIVGitSelfAttention(GitSelfAttention):
    """`GitSelfAttention` whose scores and sums are KIV's."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Attend to the text, and to an image's tokens before it."""
        return bert_self_attention(self, hidden_states, past_key_values, attention_mask)


CLASSES = {GitSelfAttention: KIVGitSelfAttention}
