"""What a model is made of, from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .layers import LayerSizes, field, layer_sizes
from .shapes import trace
from .weights import Weights, count_weights

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

COMPUTE_BYTES = 4
"""Scores are computed in float32 (SPEC 1.2)."""

QUERIES = 256
"""Whose scores exist at once while a prompt is read."""


@dataclass(frozen=True)
class ModelSizes:
    """Layers of a model's cache, weights, and widths of what it computes.

    Attributes
    ----------
    hidden, wide : int
        Width of the states between layers, and inside of one.
    problem : str
        Why heads and widths are those of the configuration's fields, and not of a pass; empty if they are not.
    """

    layers: tuple[LayerSizes, ...]
    weights: Weights
    hidden: int
    wide: int
    problem: str

    @property
    def ours(self) -> tuple[LayerSizes, ...]:
        """The KIV layers."""
        return tuple(layer for layer in self.layers if layer.kiv)

    def others_bytes(self, tokens: int, dtype: torch.dtype) -> int:
        """Count bytes of the layers that are transformers' own, and of the states beside KIV layers."""
        states = sum(layer.narrow * dtype.itemsize + layer.wide for layer in self.layers if layer.kiv)
        return states + sum(layer.bytes_at(tokens, dtype) for layer in self.layers if not layer.kiv)

    def token_bytes(self, dtype: torch.dtype) -> int:
        """Count bytes of the keys and values of one token in all KIV layers."""
        return dtype.itemsize * sum(layer.token_numbers for layer in self.ours)

    def work_bytes(self, dtype: torch.dtype, chunk: int, tokens: int) -> int:
        """Count bytes that a chunk of the prompt needs while it is computed, `tokens` of one layer at a time."""
        groups = max((layer.query_heads // layer.heads for layer in self.ours), default=1)
        scores = 3 * COMPUTE_BYTES * groups * min(chunk, QUERIES) * tokens
        activations = COMPUTE_BYTES * chunk * (8 * self.hidden + 3 * self.wide)
        widest = max(self.ours, key=lambda layer: layer.token_numbers, default=None)
        if widest is None:
            return activations
        one_layer = tokens * (dtype.itemsize * widest.token_numbers + 2 * COMPUTE_BYTES * widest.key_width)
        return scores + activations + one_layer


def model_sizes(config: PreTrainedConfig, dtype: torch.dtype) -> ModelSizes:
    """Find out what a model is made of, in `dtype`.

    Raises
    ------
    KIVUnsupportedError
        The configuration does not tell what a layer keeps of a token.
    """
    traced, text = trace(config), config.get_text_config(decoder=True)
    hidden = field(text, 0, "hidden_size") or 0
    return ModelSizes(
        layers=layer_sizes(config, traced, dtype),
        weights=count_weights(config, traced),
        hidden=hidden,
        wide=field(text, 0, "intermediate_size") or 4 * hidden,
        problem=traced.problem,
    )
