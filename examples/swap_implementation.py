"""One argument chooses the implementation: a name, or any function from a `KIVConfig` to a pool of stores."""

import sys
from pathlib import Path

from kiv_hf import KIVCache, KIVConfig
from kiv_reference import ReferencePool
from kiv_reference.contract import StorePool
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


def announced(config: KIVConfig) -> StorePool:
    """Stand for an implementation of your own; this one only says that it was asked for."""
    print(f"a pool with {config.hot_tokens} hot tokens, retrieving {config.retrieve_tokens or 'all'}")
    return ReferencePool(config)


name = sys.argv[1] if len(sys.argv) > 1 else "HuggingFaceTB/SmolLM2-135M-Instruct"
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="kiv", dtype="float32")
inputs = tokenizer(Path("LICENSE").read_text()[:4000], return_tensors="pt")

exact = KIVConfig(hot_tokens=256, retrieve_tokens=None)  # nothing is left out: the answers must be equal
caches = {
    "reference": KIVCache(model.config, exact, impl="reference"),
    "announced": KIVCache(model.config, exact, impl=announced),
    "DynamicCache": DynamicCache(config=model.config),  # with a cache that is not KIV's, "kiv" attends as "sdpa" does
}
answers = {
    label: model.generate(**inputs, past_key_values=cache, max_new_tokens=8, do_sample=False)[0].tolist()
    for label, cache in caches.items()
}
print(tokenizer.decode(answers["reference"][-8:]))
assert answers["reference"] == answers["announced"] == answers["DynamicCache"]
