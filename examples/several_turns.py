"""Several questions about one text: it is read once, each question continues from a fork of its cache."""

import sys
from pathlib import Path

import torch
from kiv_hf import KIVCache, KIVConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

name = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
questions = ("Which licence is this?", "What does it grant?")

tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="kiv")
text = tokenizer(Path("LICENSE").read_text(), return_tensors="pt").input_ids
# Small budgets, so that there is something to choose even in a short text; leave them out for your own.
read = KIVCache(model.config, KIVConfig(hot_tokens=512, candidate_tokens=512, retrieve_tokens=256))
with torch.no_grad():
    model(text, past_key_values=read, logits_to_keep=1)

for question in questions:
    turn = tokenizer(f"\n\nQuestion: {question}\nAnswer:", return_tensors="pt", add_special_tokens=False).input_ids
    prompt = torch.cat([text, turn], dim=1)
    with_turn = read.fork()
    output = model.generate(prompt, past_key_values=with_turn, max_new_tokens=8, do_sample=False)
    print(question, "->", tokenizer.decode(output[0, prompt.shape[1] :]))
    with_turn.close()

assert read.get_seq_length() == text.shape[1], "the forks left the cache of the text alone"
read.close()
