"""The queries that a KIV store samples (SPEC 3.2), kept while a stock model reads a text."""

from __future__ import annotations

from typing import Any

import torch
from kiv_reference.index import SAMPLE_TOKENS
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from benchmarks.models import twin

ATTENTION = "kiv_benchmark_queries"
"""Name under which the watching attention function is registered."""


def sampled(query: torch.Tensor, start: int) -> torch.Tensor:
    """Take one in SAMPLE_TOKENS of ``query [HQ, n, D]``, whose first position is `start`."""
    return query[:, (-1 - start) % SAMPLE_TOKENS :: SAMPLE_TOKENS].clone()


class SampledQueries:
    """Watches a model.

    Attributes
    ----------
    model : PreTrainedModel
        A twin of the stock model, to be run; its answers are the stock model's.
    """

    def __init__(self, stock: PreTrainedModel) -> None:
        self._parts: dict[int, list[torch.Tensor]] = {}
        self._scale = 1.0

        def attend(
            module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, None]:
            start = key.shape[2] - query.shape[2]
            self._scale = float(kwargs["scaling"])
            # A sliding layer hands over its last keys alone: what is noted of it is never asked for.
            self._parts.setdefault(module.layer_idx, []).append(sampled(query[0], start))
            return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

        AttentionInterface.register(ATTENTION, attend)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        self.model = twin(stock, ATTENTION)

    def attend(self, store: Any, layer: int, start: int, stop: int) -> None:
        """Give a layer's store the sampled queries of the tokens ``[start, stop)``, which it was just given.

        The others are 0, and what they attend to is thrown away.
        """
        known = torch.cat(self._parts[layer], dim=1)  # [HQ, n, D]
        samples = torch.arange(start // SAMPLE_TOKENS, stop // SAMPLE_TOKENS)
        query = known.new_zeros(1, known.shape[0], stop - start, known.shape[2])
        query[0, :, SAMPLE_TOKENS * (samples + 1) - 1 - start] = known[:, samples]
        store.attend(query, scale=self._scale)
