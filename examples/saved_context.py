"""A text is read once and saved; whoever has the same model loads what was read, in whatever process, and asks.

``python examples/saved_context.py [MODEL] [FOLDER]``: a second run with the same folder reads nothing.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from kiv_hf import KIVCache, KIVConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

name = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
book = Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp(), "licence")

tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="kiv")
text = tokenizer(Path("LICENSE").read_text(), return_tensors="pt").input_ids
turn = tokenizer("\n\nQuestion: Which licence is this?\nAnswer:", return_tensors="pt", add_special_tokens=False)
prompt = torch.cat([text, turn.input_ids], dim=1)

start = time.perf_counter()
if not book.exists():
    cache = KIVCache(model.config, KIVConfig(hot_tokens=512))
    with torch.no_grad():
        model(text, past_key_values=cache, logits_to_keep=1)
    cache.save(book)
    cache.close()
    print(f"read and saved: {time.perf_counter() - start:.1f} s")

answers = []
for _ in range(2):
    start = time.perf_counter()
    cache = KIVCache.load(book, model)
    print(f"loaded: {time.perf_counter() - start:.2f} s")
    output = model.generate(prompt, past_key_values=cache, max_new_tokens=8, do_sample=False)
    answers.append(tokenizer.decode(output[0, prompt.shape[1] :]))
    cache.close()
print(answers[0])
assert answers[0] == answers[1], "what was saved stays as it was, whatever is asked"
