"""Everything that `generate` does, token for token as with the stock cache, on models of very different kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kiv_hf import KIVCache, use_kiv
from transformers import StoppingCriteria, StoppingCriteriaList

from .catalog import tiny_model
from .compare import EXACT
from .feeds import TOKENS, padded, stock_cache, text

MODELS = ("llama", "gemma2", "gemma3n_text", "deepseek_v3", "diffllama", "qwen3_next", "falcon_h1", "bloom", "gptj")
NEW_TOKENS = 6


class EndsWith(StoppingCriteria):
    """Stop at one given number of tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return one flag for each sequence."""
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.tokens)


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 10},
    "beams": {"num_beams": 3, "early_stopping": False},
    "beams, stopping early": {"num_beams": 3, "early_stopping": True},
    "several sequences of beams": {"num_beams": 3, "num_return_sequences": 2},
    "several samples": {"do_sample": True, "top_k": 10, "num_return_sequences": 2},
    "prefill in chunks": {"prefill_chunk_size": 11},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "stopping criteria": {"stopping_criteria": StoppingCriteriaList([EndsWith(TOKENS + 3)])},
    "repetition penalty": {"repetition_penalty": 1.5},
    "left padding": {},
    "left padding, in chunks": {"prefill_chunk_size": 11},
    "left padding, beams": {"num_beams": 2},
    "a dictionary": {"return_dict_in_generate": True, "output_scores": True},
    "a second turn": {},
}


@pytest.fixture(scope="module", params=MODELS)
def models(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Return the same model twice: as transformers ships it, and routed through KIV."""
    torch.set_grad_enabled(False)
    return tiny_model(request.param, None), use_kiv(tiny_model(request.param, None))


@pytest.mark.parametrize("mode", MODES)
def test_generate(models: tuple[Any, Any], mode: str) -> None:
    """KIV gives the stock cache's tokens; where the stock cache cannot do it, KIV gives an error too."""
    stock, kiv = models
    expected = generate(stock, stock_cache(stock), mode)
    got = generate(kiv, KIVCache(kiv.config, EXACT), mode)
    if isinstance(expected, Exception):
        assert isinstance(got, Exception), f"the stock cache raises {expected!r}"
        return
    assert not isinstance(got, Exception), repr(got)
    assert torch.equal(got, expected)


def generate(model: Any, cache: Any, mode: str) -> torch.Tensor | Exception:
    """Return the tokens of `mode`, or the error that it gives."""
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "past_key_values": cache, **MODES[mode]}
    ids = text(model)
    if mode.startswith("left padding"):
        ids, settings["attention_mask"] = padded(ids)
    if mode == "prompt lookup":
        ids = torch.cat([ids[:, :13]] * 3, dim=1)  # repeats, so that candidates are found
        cache.activate_past_recording()
    torch.manual_seed(3)
    try:
        output = model.generate(ids, **settings)
        if mode == "a second turn":
            output = model.generate(torch.cat([output, ids[:, :9]], dim=1), **settings)
    except Exception as error:  # what kind it is, the stock cache decides
        return error
    return output.sequences if mode == "a dictionary" else output


def test_assisted_decoding() -> None:
    """The assistant is a smaller model, so that proposals are rejected too, and both caches crop."""
    stock, kiv = tiny_model("llama", None), tiny_model("llama", None)
    use_kiv(kiv)
    assistant = tiny_model("llama", None, seed=6)
    ids = text(stock)
    settings = {"assistant_model": assistant, "max_new_tokens": 12, "do_sample": False}
    expected = stock.generate(ids, past_key_values=stock_cache(stock), **settings)
    cache = KIVCache(kiv.config, EXACT)
    assert torch.equal(kiv.generate(ids, past_key_values=cache, **settings), expected)
    assert cache.tokens().cold_ram > 0


def test_modes_are_exercised(models: tuple[Any, Any]) -> None:
    """Most modes give tokens on most models: the comparison is not one of errors."""
    stock, _ = models
    worked = [mode for mode in MODES if not isinstance(generate(stock, stock_cache(stock), mode), Exception)]
    assert len(worked) > len(MODES) // 2, worked
