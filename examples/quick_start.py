"""The quick start of the README: ``python examples/quick_start.py [MODEL]``, a hub id or a folder."""

import sys
from pathlib import Path

from kiv_hf import KIVCache, KIVConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

name = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
text = Path("LICENSE").read_text() + "\n\nQuestion: Which licence is this?\nAnswer:"

tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="kiv")
cache = KIVCache(model.config, KIVConfig(hot_tokens=512))
inputs = tokenizer(text, return_tensors="pt")
output = model.generate(**inputs, past_key_values=cache, max_new_tokens=8, do_sample=False)
print(tokenizer.decode(output[0, inputs.input_ids.shape[1] :]))
print(cache.tokens(), cache.memory())
