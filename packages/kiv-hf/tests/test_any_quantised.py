"""A real model with 8-bit and 4-bit weights (bitsandbytes runs on a CPU): the stock cache's answer, word for word."""

from __future__ import annotations

import pytest
import torch
from kiv_hf import KIVCache, KIVConfig, use_kiv
from test_hf_real import smollm2
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, DynamicCache

pytestmark = pytest.mark.real

WEIGHTS = {
    "8 bit": {"load_in_8bit": True},
    "4 bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
}
QUESTION = "The blue box holds the key of the garden. The red box is empty. " * 12 + "Which box holds the key?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The model as transformers quantises it from: not from a gguf file."""
    pytest.importorskip("bitsandbytes")
    path = smollm2()
    folder = tmp_path_factory.mktemp("smollm2")
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("weights", WEIGHTS)
def test_answer(folder, weights):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = BitsAndBytesConfig(**WEIGHTS[weights])
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32, device_map="cpu"
    ).eval()
    assert "bitsandbytes" in type(model.model.layers[0].self_attn.q_proj).__module__
    messages = [{"role": "user", "content": QUESTION}]
    inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    length = inputs.input_ids.shape[1]
    settings = {"max_new_tokens": 12, "do_sample": False}
    expected = model.generate(**inputs, past_key_values=DynamicCache(config=model.config), **settings)
    use_kiv(model)
    hot = {"hot_tokens": 32, "page_tokens": 16}
    cache = KIVCache(model.config, KIVConfig(retrieve_tokens=None, **hot))
    assert torch.equal(model.generate(**inputs, past_key_values=cache, **settings), expected)
    assert cache.tokens().cold_ram > length * 3 // 4
    cache = KIVCache(model.config, KIVConfig(retrieve_tokens=128, candidate_pages=12, **hot))
    answer = tokenizer.decode(model.generate(**inputs, past_key_values=cache, **settings)[0, length:])
    assert "box" in answer
    assert "blue" in tokenizer.decode(expected[0, length:]).lower()
