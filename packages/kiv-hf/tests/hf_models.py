"""Tiny random models, the ways to feed them, and how far two right answers may lie apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kiv_hf import KIVCache, KIVConfig
from packaging.version import Version
from transformers import (
    DynamicCache,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

if TYPE_CHECKING:
    from pathlib import Path

OLD_TORCH = Version(torch.__version__) < Version("2.7")
"""transformers itself does less with it."""

VOCABULARY = 97
TEXT_TOKENS = 96

# A hot window far smaller than the text: most tokens are cold.
PAGES: dict[str, Any] = {
    "hot_tokens": 8,
    "sink_tokens": 2,
    "page_tokens": 4,
    "index_channels": 5,
    "query_block_tokens": 5,
}
EXACT = KIVConfig(retrieve_tokens=None, **PAGES)
# The whole path of retrieval, in prefill too, with nothing left out: where cold tokens are more than 25, of which there
# is nothing to choose, all are ranked by their codes and taken for max_missed_mass (SPEC 6.3); beyond 100 it streams.
FULL_BUDGET = KIVConfig(
    retrieve_tokens=5, candidate_tokens=25, max_missed_mass=1e-30, prefill="retrieve", exact_suffix_tokens=0,
    tail="none", **PAGES,
)  # fmt: skip
# One token of a hundred, and nothing for the rest: surely not what full attention gives.
STARVED = KIVConfig(
    retrieve_tokens=1, candidate_tokens=1, prefill="retrieve", exact_suffix_tokens=0, tail="none", **PAGES
)

FEEDS = {"one shot": [TEXT_TOKENS], "chunks": [31, 1, 2, 29, 1, 32], "token by token": [1] * TEXT_TOKENS}


@dataclass
class TinyModel:
    """A model with the attention "kiv", its twin with transformers' own attention, and a text."""

    kiv: Any
    stock: Any
    ids: torch.Tensor  # [1, TEXT_TOKENS]

    @property
    def config(self) -> Any:
        return self.kiv.config

    def cache(self, config: KIVConfig = EXACT, **kwargs: Any) -> KIVCache:
        return KIVCache(self.config, config, **kwargs)

    def stock_cache(self) -> DynamicCache:
        return DynamicCache(config=self.config)

    def rounding(self) -> float:
        """Tell how far right logits may lie apart: far beyond what any processor's order of sums moves them.

        A wrong cache is off by more than a tenth of the largest.
        """
        logits = feed(self.stock, self.ids, self.stock_cache(), [TEXT_TOKENS])
        return (1e-10 if logits.dtype == torch.float64 else 1e-4) * logits.abs().max().item()


def feed(model: Any, ids: torch.Tensor, cache: Any, lengths: list[int], **kwargs: Any) -> torch.Tensor:
    """Return logits [B, T, vocabulary] of `ids`, fed in pieces of `lengths`."""
    mask = kwargs.pop("attention_mask", None)
    logits, start = [], 0
    for piece in ids.split(lengths, dim=1):
        start += piece.shape[1]
        part = {} if mask is None else {"attention_mask": mask[:, :start]}
        logits.append(model(piece, past_key_values=cache, **part, **kwargs).logits)
    return torch.cat(logits, dim=1)


def pair(
    config_class: Any, model_class: Any, attention: str = "sdpa", dtype: torch.dtype = torch.float64, **settings: Any
) -> TinyModel:
    """Make both in float64, where right answers agree on any processor, and a wrong one stands out."""
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
        # Larger weights than at the start of a training: attention picks tokens instead of averaging them.
        "initializer_range": 0.35, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
    }  # fmt: skip
    config = config_class(**(sizes | settings))
    torch.manual_seed(5)
    stock = model_class(config).eval().to(dtype)
    kiv = model_class(config_class(**(sizes | settings))).eval().to(dtype)
    kiv.load_state_dict(stock.state_dict())
    for model in (stock, kiv):
        model.config._experts_implementation = "eager"  # the grouped products of the default take no float64
    # Named, because the default of old versions for Gemma 2 is sdpa, which leaves the softcap out.
    stock.set_attn_implementation(attention)
    kiv.set_attn_implementation("kiv")
    ids = torch.randint(2, VOCABULARY, (1, TEXT_TOKENS), generator=torch.Generator().manual_seed(7))
    return TinyModel(kiv, stock, ids)


def in_parts(model: Any, folder: Path) -> Any:
    """Divide a model of two layers by a device map: the first stays in memory, the second is read for every pass."""
    accelerate: Any = pytest.importorskip("accelerate")
    parts = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    parts |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    divided = accelerate.dispatch_model(model, parts, main_device="cpu", offload_dir=str(folder), force_hooks=True)
    assert [layer.self_attn.k_proj.weight.is_meta for layer in divided.model.layers] == [False, True]
    return divided


def falcon_h1() -> FalconH1ForCausalLM:
    """Return a model with a linear state beside the attention of each layer, in transformers' own attention."""
    fields: dict[str, Any] = {"head_dim": 8}  # it takes this from the classes above it
    config = FalconH1Config(
        **fields, vocab_size=60, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8,
        mamba_n_groups=1, mamba_chunk_size=8, initializer_range=0.3, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    return FalconH1ForCausalLM(config).eval().double()


TINY_MODELS = {
    "llama": lambda: pair(LlamaConfig, LlamaForCausalLM, num_hidden_layers=2),
    "qwen3": lambda: pair(Qwen3Config, Qwen3ForCausalLM, num_hidden_layers=2),
    "gemma3": lambda: pair(
        Gemma3TextConfig, Gemma3ForCausalLM, num_hidden_layers=3, sliding_window=12,
        layer_types=["sliding_attention", "full_attention", "full_attention"], query_pre_attn_scalar=8,
        num_key_value_heads=1,
    ),
    "gemma2": lambda: pair(
        # Not in float64: eager attention's softmax is in float32, where float64's mask of a padded row is infinite.
        Gemma2Config, Gemma2ForCausalLM, attention="eager", dtype=torch.float32, num_hidden_layers=2, sliding_window=12,
        attn_logit_softcapping=2.0,
        layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8,
    ),
    "gpt_oss": lambda: pair(
        GptOssConfig, GptOssForCausalLM, attention="eager", num_hidden_layers=2, sliding_window=12, num_local_experts=2,
        num_experts_per_tok=1, layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
}  # fmt: skip
