"""Real queries, keys and values of a model's global layers over real text, taken as its attention function gets them.

Keys and values are causal: those of a long text hold those of every shorter one. So one capture serves every context
length at which it kept queries. Captures lie in the user's cache folder, one safetensors file for a model and text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.models import MODELS, kjv_text, load_model, load_tokenizer, twin

ATTENTION = "kiv_benchmark_capture"
"""Name under which the capturing attention function is registered."""

WINDOW_TOKENS = 64
"""Queries are kept of the last this many positions of every context length."""

CHUNK_TOKENS = 1024
"""Tokens of one prefill call: bounds the memory of its mask."""

TEXTS = {"genesis": 0.0, "gospels": 0.75}
"""Name of a haystack -> the share of the King James text before it."""

LENGTHS = {
    "gemma": (4096, 8192, 16384, 24576, 32768),
    "smollm2": (4096, 6144, 8192),
}
"""Short name of a model -> context lengths at which queries are kept; the last is the length of the capture."""


@dataclass(frozen=True)
class Capture:
    """What one model's global layers were given over one text; tensors are read from the file when asked for.

    Attributes
    ----------
    path : Path
    scale : float
        Factor on query · key.
    layers : tuple of int
        The global layers, by index in the model.
    lengths : tuple of int
        Context lengths T at which queries are kept.
    """

    path: Path
    scale: float
    layers: tuple[int, ...]
    lengths: tuple[int, ...]

    def keys_values(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys ``[H, T, D]`` and values ``[H, T, DV]``, bfloat16, of the longest context."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(f"key.{layer}"), file.get_tensor(f"value.{layer}")

    def queries(self, layer: int, length: int) -> torch.Tensor:
        """Queries ``[HQ, WINDOW_TOKENS, D]``, bfloat16, of the last positions before `length`."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(f"query.{layer}.{length}")


@dataclass
class _Recorder:
    """What the attention function keeps during one prefill."""

    layers: tuple[int, ...]
    lengths: tuple[int, ...]
    scale: float = 0.0
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    def see(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> None:
        stop = key.shape[2]
        start = stop - query.shape[2]
        self.scale = scale
        for length in self.lengths:
            first = length - WINDOW_TOKENS
            # A window never straddles two calls: lengths are multiples of CHUNK_TOKENS.
            if start <= first and length <= stop:
                self.tensors[f"query.{layer}.{length}"] = query[0, :, first - start : length - start].clone(
                    memory_format=torch.contiguous_format
                )
        if stop == self.lengths[-1]:
            self.tensors[f"key.{layer}"] = key[0].clone(memory_format=torch.contiguous_format)
            self.tensors[f"value.{layer}"] = value[0].clone(memory_format=torch.contiguous_format)


def global_layers(config: Any) -> tuple[int, ...]:
    """Indices of the layers that attend to every earlier token."""
    kinds: list[str] | None = getattr(config, "layer_types", None)
    if kinds is None:
        return tuple(range(config.num_hidden_layers))
    return tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")


def haystack_tokens(model: str, text: str, count: int) -> torch.Tensor:
    """Token ids, int64 [1, count], of the King James text from the place that `text` names."""
    whole = kjv_text()
    start = int(len(whole) * TEXTS[text])
    start = 0 if start == 0 else whole.index("\n", start) + 1
    return load_tokenizer(model)(whole[start : start + 16 * count], return_tensors="pt").input_ids[:, :count]


def _prefill(model: str, text: str) -> _Recorder:
    from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    stock = load_model(model)
    recorder = _Recorder(global_layers(stock.config), LENGTHS[model])

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        if module.layer_idx in recorder.layers:
            recorder.see(module.layer_idx, query, key, value, float(kwargs["scaling"]))
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    watched = twin(stock, ATTENTION)
    cache = DynamicCache(config=stock.config)
    ids = haystack_tokens(model, text, recorder.lengths[-1])
    with torch.inference_mode():
        for chunk in ids.split(CHUNK_TOKENS, dim=1):
            watched(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return recorder


def load_capture(model: str, text: str) -> Capture:
    """Return the capture of a model over a text, taken on first use (a prefill: about a minute)."""
    folder = user_cache_path("kiv-benchmarks") / "captures"
    path = folder / f"{MODELS[model].package}-{text}-{LENGTHS[model][-1]}.safetensors"
    if not path.exists():
        recorder = _prefill(model, text)
        about = {"scale": recorder.scale, "layers": recorder.layers, "lengths": recorder.lengths}
        folder.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".part")
        save_file(recorder.tensors, scratch, metadata={"about": json.dumps(about)})
        scratch.rename(path)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
    return Capture(path, about["scale"], tuple(about["layers"]), tuple(about["lengths"]))
