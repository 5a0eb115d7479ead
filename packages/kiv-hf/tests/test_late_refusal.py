"""A device finds late that a key is no number: layers then hold unequal lengths, and `crop` brings them together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import kiv_fast.cold
import pytest
import torch
from kiv_fast.device.flags import Flags
from kiv_hf import KIVCache, KIVConfig
from kiv_reference.errors import KIVNonFiniteError, KIVUsageError
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("triton")

from conformance.interpreted import pool

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8,
)  # fmt: skip
CONFIG = KIVConfig(
    hot_tokens=8, sink_tokens=2, page_tokens=4, index_channels=6, candidate_tokens=9, retrieve_tokens=4
)  # fmt: skip
PROMPT = 40


class Late(Flags):
    """Words that are looked at in the next call, as those of a device that computes on its own."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.late = True


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.Tensor]:
    """Return what feeds tokens to a model, by positions; with a key that is no number in the layer `bad`."""
    monkeypatch.setattr(kiv_fast.cold, "Flags", Late)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(MODEL).eval()
    model.set_attn_implementation("kiv")
    ids = torch.randint(0, 50, (1, PROMPT + 10))

    def spoil(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output.index_fill(2, torch.tensor(3), torch.nan)

    def call(cache: KIVCache, start: int, stop: int, bad: int | None = None) -> torch.Tensor:
        hook = None if bad is None else model.model.layers[bad].self_attn.k_proj.register_forward_hook(spoil)
        try:
            with torch.no_grad():
                return model(ids[:, start:stop], past_key_values=cache).logits[:, -1]
        finally:
            if hook is not None:
                hook.remove()

    return call


@pytest.mark.parametrize("bad", range(3))
def test_layers_come_together_again(feed: Callable[..., torch.Tensor], bad: int) -> None:
    cache, right = (KIVCache(MODEL, CONFIG, impl=pool) for _ in range(2))
    for each in (cache, right):
        feed(each, 0, PROMPT)
        feed(each, PROMPT, PROMPT + 1)
    feed(cache, PROMPT + 1, PROMPT + 2, bad)
    with pytest.raises(KIVNonFiniteError, match=f"position {PROMPT + 1}"):
        feed(cache, PROMPT + 2, PROMPT + 3)
    with pytest.raises(KIVUsageError, match=r"cache\.crop\(0\)"):
        feed(cache, PROMPT + 2, PROMPT + 3)
    cache.crop(0)
    assert cache.get_seq_length() == PROMPT + 1
    for at in (PROMPT + 1, PROMPT + 2):
        assert torch.equal(feed(cache, at, at + 1), feed(right, at, at + 1))
