"""Decode steps in Triton, interpreted, in models that were quantised, compiled or divided.

`ComparePool` holds every step against the specification; the logits are held against those of the same model with
torch's operations.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from float64_truth import TIMES, error
from hf_models import OLD_TORCH, VOCABULARY, in_parts
from kiv_hf import KIVCache, KIVConfig
from kiv_hf.compare.pool import ComparePool
from kiv_reference import ReferencePool
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

pytest.importorskip("triton")

from kiv_fast.ops.triton import TritonDecoder

from conformance.interpreted import pool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kiv_fast.ops.decoding import Decode, Decoded, Take
    from kiv_reference import StorePool

MODEL = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, initializer_range=0.2, pad_token_id=0,
)  # fmt: skip
# 64 cold tokens in every step: none becomes cold between them, so that steps come alike and are recorded.
CONFIG = KIVConfig(
    hot_tokens=16, sink_tokens=2, page_tokens=8, index_channels=16, candidate_tokens=26, retrieve_tokens=8
)  # fmt: skip
STARVED = replace(CONFIG, candidate_tokens=1, retrieve_tokens=1, tail="none")
PROMPT, STEPS = 82, 3


BITS = {
    "4 bits": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    "8 bits": BitsAndBytesConfig(load_in_8bit=True),
}


def load(folder: Path, **quantised: Any) -> Any:
    model: Any = LlamaForCausalLM
    return model.from_pretrained(folder, dtype=torch.float32, attn_implementation="kiv", **quantised).eval()


def quantised(folder: Path, bits: str) -> Any:
    nn = pytest.importorskip("bitsandbytes.nn")
    model = load(folder, quantization_config=BITS[bits])
    kind = nn.Linear4bit if bits == "4 bits" else nn.Linear8bitLt
    assert isinstance(model.model.layers[1].self_attn.k_proj, kind)
    return model


def compiled(folder: Path) -> Any:
    """All that is around the attention; what a backend makes of it is not KIV's."""
    if OLD_TORCH:
        pytest.skip("transformers 5.23 compiles no model, with its own cache either, below torch 2.7")
    return torch.compile(load(folder), backend="eager")


MADE: dict[str, Callable[[Path], Any]] = {
    **{bits: partial(quantised, bits=bits) for bits in BITS}, "compiled": compiled,
    "in parts": lambda folder: in_parts(load(folder), folder / "parts"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model whose best two logits lie apart in every step, however its weights are rounded here."""
    torch.manual_seed(9)
    made = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(MODEL).save_pretrained(made)
    return made


@pytest.fixture
def retrieved(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Note of every step that Triton takes whether it retrieves."""
    decode, seen = TritonDecoder.decode, list[bool]()

    def noting(self: TritonDecoder, asked: Decode, take: Take) -> Decoded:
        seen.append(asked.index is not None)
        return decode(self, asked, take)

    monkeypatch.setattr(TritonDecoder, "decode", noting)
    return seen


def steps(model: Any, cache: KIVCache, fed: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and best tokens of every step after the prompt; without tokens to be `fed`, the best ones are."""
    ids = torch.randint(2, VOCABULARY, (1, PROMPT), generator=torch.Generator().manual_seed(7))
    best = [model(ids, past_key_values=cache).logits[:, -1].argmax(-1)]
    found = list[torch.Tensor]()
    for step in range(STEPS):
        token = best[-1] if fed is None else fed[step : step + 1]
        found.append(model(token[None], past_key_values=cache).logits[:, -1])
        best.append(found[-1].argmax(-1))
    return torch.cat(found), torch.cat(best)


@pytest.mark.parametrize("name", MADE)
def test_steps_in_triton(folder: Path, name: str, retrieved: list[bool]) -> None:
    """Truth is the same weights in float64: layers of 8 bits round what goes through them, and turn a last bit into a
    step, so that of those the logits alone would tell little.
    """
    model, made = MADE[name](folder), list[Any]()

    def triton(config: KIVConfig) -> StorePool:
        made.append(pool(config))
        return made[0]

    expected, tokens = steps(model, KIVCache(model.config, CONFIG, ops="torch"))
    assert not retrieved
    cache = KIVCache(model.config, CONFIG, impl=partial(ComparePool, candidate=triton))
    logits, told = steps(model, cache, tokens)
    assert made[0].operations == "triton (decode), torch"
    assert retrieved == [True] * STEPS * MODEL.num_hidden_layers
    assert made[0].ops._recorded.replays > 0
    for report in cache.reports().values():
        (block,) = report.blocks
        assert block.mode == "retrieve"
        assert block.selected_positions.shape[-1] == CONFIG.retrieve_tokens
    assert told.tolist() == tokens.tolist()

    starved = steps(model, KIVCache(model.config, STARVED, ops="torch"), tokens)[0]
    exact = MADE[name](folder).dequantize() if name in BITS else load(folder)
    truth = steps(exact.double(), KIVCache(exact.config, CONFIG, impl=ReferencePool), tokens)[0]
    bound = TIMES * error(expected, truth)
    assert error(logits, truth) <= bound
    assert error(starved, truth) > bound
