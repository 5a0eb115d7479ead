"""What a decode step costs in Python calls of the binding: at small models they are most of its time."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kiv_hf
import torch
from transformers import LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from types import FrameType

MOST = 45
"""Calls for each layer and step."""

LAYERS = 4


def test_a_step_takes_few_calls() -> None:
    config = LlamaConfig(
        vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.set_attn_implementation("kiv")
    cache = kiv_hf.KIVCache(model.config, kiv_hf.KIVConfig(hot_tokens=256, page_tokens=32, candidate_tokens=64,
                                                           retrieve_tokens=32))  # fmt: skip
    model(torch.zeros(1, 600, dtype=torch.long), past_key_values=cache)
    folder, calls = str(Path(kiv_hf.__file__).parent), Counter[str]()

    def count(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(folder):
            calls[frame.f_code.co_name] += 1

    sys.setprofile(count)
    try:
        model(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)
    finally:
        sys.setprofile(None)
    assert next(iter(cache.reports().values())).blocks[0].mode == "retrieve"
    assert calls["update"] == 2 * LAYERS
    assert calls.total() <= MOST * LAYERS, calls.most_common(10)
