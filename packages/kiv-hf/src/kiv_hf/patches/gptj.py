"""GPTJAttention: its method `_attn` gets exactly what the cache returned."""

from __future__ import annotations

import torch
from transformers.models.gptj.modeling_gptj import GPTJAttention

from .common import attend


class KIVGPTJAttention(GPTJAttention):
    """`GPTJAttention` whose scores and sums are KIV's."""

    def _attn(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        output = attend(self, query, key, value, attention_mask, 1.0 / float(self.scale_attn))
        return output.transpose(1, 2), None


CLASSES = {GPTJAttention: KIVGPTJAttention}
