"""GPTNeoSelfAttention: its method `_attn` gets exactly what the cache returned; local layers keep their own code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from .common import additive, attend

if TYPE_CHECKING:
    import torch


class KIVGPTNeoSelfAttention(GPTNeoSelfAttention):
    """`GPTNeoSelfAttention` whose global layers are KIV's."""

    def _attn(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.attention_type == "local":
            # A buffer of the module cuts the window; the mask only has to tell what is padding.
            mask = attention_mask
            if mask is not None and mask.ndim == 2:
                mask = mask[:, None, None, :]
            return super()._attn(query, key, value, additive(mask, query))
        output = attend(self, query.to(key.dtype), key, value, attention_mask, 1.0)
        return output.transpose(1, 2), None


CLASSES = {GPTNeoSelfAttention: KIVGPTNeoSelfAttention}
