"""A model's weights: bytes, dense or quantised, how many a step reads, and by how many a token is multiplied."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.pytorch_utils import Conv1D

from .layers import field

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from .shapes import Traced

BITS = {"4bit": 4.5, "8bit": 8.0, "bf16": 16.0}
"""Of a weight as `--weights` names it: bitsandbytes' four bits have a float32 scale for each 64 weights."""

NESTED_4BIT = 4.127
"""With the scales quantised once more (Dettmers and others, QLoRA, 2023, section 3)."""

FIXED_BITS = {"fp8": 8.0, "fbgemm_fp8": 8.0, "eetq": 8.0, "mxfp4": 4.25, "nvfp4": 4.5, "bitnet": 2.0}
"""Of methods that have one width: four bits and a scale of eight for each 32 (mxfp4) or 16 (nvfp4) weights."""

EXPERT = re.compile(r"\.experts\.")


@dataclass(frozen=True)
class Weights:
    """Counts of a model's weights.

    Attributes
    ----------
    plain, linear : int
        Weights that no quantisation touches: embeddings, norms, the output head; and those of linear maps and experts.
    read_plain, read_linear : float
        Of these, what a decode step reads: of experts those that a token is sent to.
    multiplied : float
        Weights that each token of a prompt is multiplied by; the output head serves the last token alone.
    """

    plain: int
    linear: int
    read_plain: float
    read_linear: float
    multiplied: float

    def held_bytes(self, dtype: torch.dtype, bits: float | None) -> int:
        """Count bytes of all, with linear maps in `dtype` or in `bits` each."""
        return round(self.plain * dtype.itemsize + self.linear * _bytes(dtype, bits))

    def read_bytes(self, dtype: torch.dtype, bits: float | None) -> float:
        """Count bytes that a decode step reads."""
        return self.read_plain * dtype.itemsize + self.read_linear * _bytes(dtype, bits)


def _bytes(dtype: torch.dtype, bits: float | None) -> float:
    return dtype.itemsize if bits is None else bits / 8


def count_weights(config: PreTrainedConfig, traced: Traced) -> Weights:
    """Count the weights of a model; each that several modules share once."""
    model, skipped, share = traced.model, _skipped(_saved(config)), _expert_share(config)
    head = model.get_output_embeddings()
    plain = linear = 0
    read_plain = read_linear = multiplied = 0.0
    seen: set[int] = set()
    names = {id(module): name for name, module in model.named_modules()}
    # The head first: an embedding that it shares is read whole, as no other embedding is.
    for module in sorted(model.modules(), key=lambda one: one is not head):
        ran = traced.ran is None or module in traced.ran
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) in seen:
                continue
            seen.add(id(weight))
            path, count = f"{names[id(module)]}.{name}", weight.numel()
            expert = EXPERT.search(f".{path}") is not None
            embedding = isinstance(module, torch.nn.Embedding)
            used = count * share if expert else 0.0 if embedding or not ran else count
            is_map = weight.ndim >= 2 and not embedding and module is not head
            multiplied += used if is_map else 0
            quantised = is_map and (expert or isinstance(module, (torch.nn.Linear, Conv1D)))
            if quantised and not any(part in path for part in skipped):
                linear, read_linear = linear + count, read_linear + used
            else:
                plain, read_plain = plain + count, read_plain + used
    return Weights(plain, linear, read_plain, read_linear, multiplied)


def saved_bits(config: PreTrainedConfig) -> float | None:
    """Return the bits of a quantised weight with its share of scales; None where weights are dense.

    Raises
    ------
    LookupError
        They are quantised in a way whose width the configuration does not tell.
    """
    saved = _saved(config)
    if not saved:
        return None
    method = str(getattr(saved.get("quant_method"), "value", saved.get("quant_method", "")))
    if method in FIXED_BITS:
        return FIXED_BITS[method]
    if saved.get("load_in_4bit"):
        return NESTED_4BIT if saved.get("bnb_4bit_use_double_quant") else BITS["4bit"]
    if saved.get("load_in_8bit"):
        return BITS["8bit"]
    groups = cast("dict[str, Any]", saved.get("config_groups") or {})  # compressed-tensors
    weights = next((group.get("weights") for group in groups.values() if group.get("weights")), saved)
    for name in ("bits", "w_bit", "nbits", "num_bits", "weights"):
        width = re.search(r"\d+", str(weights.get(name, "")))
        if width is not None:
            group = weights.get("group_size") or 0
            # Of each group a scale in half precision and a zero point as wide as a weight.
            return int(width[0]) + ((16 + int(width[0])) / group if group > 0 else 0)
    raise LookupError(method or "an unnamed method")


def _saved(config: PreTrainedConfig) -> dict[str, Any]:
    saved: Any = getattr(config, "quantization_config", None)
    return {} if saved is None else cast("dict[str, Any]", saved if isinstance(saved, dict) else saved.to_dict())


def _skipped(saved: dict[str, Any]) -> list[str]:
    names = ("modules_to_not_convert", "llm_int8_skip_modules", "ignore")
    return [part for name in names for part in cast("list[str]", saved.get(name) or [])]


def _expert_share(config: PreTrainedConfig) -> float:
    """Return the share of the experts that a token is sent to."""
    text: Any = config.get_text_config(decoder=True)

    def first(*names: str) -> int | None:
        return next((value for name in names if (value := field(text, 0, name)) is not None), None)

    chosen = first("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")
    experts = first("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    return min(1.0, chosen / experts) if chosen and experts else 1.0
