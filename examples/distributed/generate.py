"""One model in several processes, each with the KIV cache of its own part; transformers divides the model.

torchrun --nproc-per-node 2 examples/distributed/generate.py pipeline [MODEL]    each process has some of the layers
torchrun --nproc-per-node 3 examples/distributed/generate.py tensor [MODEL]      each process has some of the heads

Tensor parallelism needs KV heads for all: the model that is asked by default has 3 of them.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from kiv_hf import KIVCache, KIVConfig
from torch import distributed
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig  # pyright: ignore[reportPrivateImportUsage]

SIZES = {"pipeline": "pp_size", "tensor": "tp_size"}
kind = sys.argv[1]
name = sys.argv[2] if len(sys.argv) > 2 else "HuggingFaceTB/SmolLM2-135M-Instruct"
text = Path("LICENSE").read_text()[:4000] + "\n\nQuestion: Which licence is this?\nAnswer:"

distributed.init_process_group()
rank, processes = distributed.get_rank(), distributed.get_world_size()
split: dict[str, Any] = {SIZES[kind]: processes}
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(
    name,
    attn_implementation="kiv",
    dtype="float32",
    distributed_config=DistributedConfig(**split),
)
# Small budgets, so that there is something to choose even in a short text; leave them out for your own.
small = KIVConfig(hot_tokens=128, page_tokens=64, candidate_tokens=256, retrieve_tokens=128)
cache = KIVCache(model.config, small)
inputs = tokenizer(text, return_tensors="pt").to(model.device)
output = model.generate(**inputs, past_key_values=cache, max_new_tokens=8, do_sample=False)

answers = [torch.empty_like(output) for _ in range(processes)]
distributed.all_gather(answers, output)
assert all(torch.equal(answer, output) for answer in answers), "all processes say the same"
layers = [i for i, layer in cache.kiv_layers().items() if layer.store.length > 0]
print(f"process {rank}: layers {layers[0]} to {layers[-1]}, {cache.tokens()}, {cache.memory()}", flush=True)
if rank == 0:
    print(tokenizer.decode(output[0, inputs.input_ids.shape[1] :]))
distributed.barrier()  # none leaves while another still needs it
distributed.destroy_process_group()
