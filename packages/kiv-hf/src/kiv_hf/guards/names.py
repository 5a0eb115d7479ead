"""The name of KIV's attention in transformers, and the ways out that refusals name."""

from __future__ import annotations

NAME = "kiv"
"""Under this name the attention and the mask function are registered with transformers."""

USE_KIV = (
    f'Call kiv_hf.use_kiv(model), or model.set_attn_implementation("{NAME}") where the model takes it; '
    "a model that takes neither needs a DynamicCache."
)
GO_BACK = (
    "Call cache.crop(0), which goes back to the tokens that every layer holds, and feed on from position "
    "cache.get_seq_length(); or cache.reset() and feed the text again."
)
