"""Processes that run one model together: what they do, and how a test starts them so that it cannot hang.

``python ranks.py JOB FOLDER`` is one of two processes; torchrun's variables in its environment say which. It loads its
part of the model in FOLDER, feeds it in every way, and writes what came out to ``FOLDER/JOB-RANK.pt``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hf_models import EXACT, FEEDS, FULL_BUDGET, STARVED, feed
from kiv_hf import KIVCache
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from kiv_reference import KIVConfig

RANKS = 2
TIMEOUT_S = 1200  # of a hang: a busy machine may take many times as long as an idle one
JOBS: dict[str, dict[str, Any]] = {"pipeline": {"pp_size": RANKS}, "tensor": {"tp_size": RANKS}}
IMPLS = ("reference", "fast")


def outcomes(model: Any, ids: torch.Tensor) -> dict[str, Any]:
    """Feed `ids` [1, TEXT_TOKENS] in every way. Nothing here knows whether the model is whole."""
    found: dict[str, Any] = {"logits": {}, "tokens": {}, "lengths": {}, "heads": {}}
    with torch.no_grad():
        for impl in IMPLS:
            _feed_in_every_way(model, ids, impl, found)
        starved = KIVCache(model.config, STARVED, impl="reference")
        found["logits"]["starved"] = feed(model, ids, starved, FEEDS["chunks"])
    return found


def _feed_in_every_way(model: Any, ids: torch.Tensor, impl: str, found: dict[str, Any]) -> None:
    batch = torch.cat([ids, ids.roll(7, dims=1)])
    mask = torch.ones_like(batch)
    mask[1, :7] = 0

    def cache(config: KIVConfig = EXACT) -> KIVCache:
        return KIVCache(model.config, config, impl=impl)

    def generate(tokens: torch.Tensor, cache: Any, **settings: Any) -> torch.Tensor:
        return model.generate(tokens, past_key_values=cache, do_sample=False, max_new_tokens=6, **settings)

    logits, tokens = found["logits"], found["tokens"]
    logits[impl, "exact"] = feed(model, ids, cache(), FEEDS["chunks"])
    retrieved = cache(FULL_BUDGET)
    logits[impl, "full budget"] = feed(model, ids, retrieved, FEEDS["chunks"])
    logits[impl, "padded"] = feed(model, batch, cache(), [60, 30, 6], attention_mask=mask)[:, 7:]
    tokens[impl, "greedy"] = generate(ids, cache())
    tokens[impl, "chunked prefill"] = generate(ids, cache(), prefill_chunk_size=16)
    tokens[impl, "beams"] = generate(batch, cache(), attention_mask=mask, num_beams=3)
    turns = cache()
    first = generate(ids[:, :40], turns)
    tokens[impl, "several turns"] = generate(torch.cat([first, ids[:, 40:]], dim=1), turns)
    found["lengths"][impl] = {i: layer.store.length for i, layer in turns.kiv_layers().items()}
    found["heads"][impl] = {
        i: report.blocks[-1].selected_positions.shape[1] for i, report in retrieved.reports().items()
    }


def work(job: str, folder: Path) -> None:
    """Run as one of the processes."""
    from transformers.distributed import DistributedConfig  # pyright: ignore[reportPrivateImportUsage]

    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="kiv", distributed_config=DistributedConfig(**JOBS[job])
    ).eval()
    found = outcomes(model, torch.load(folder / "ids.pt"))
    torch.save(found, folder / f"{job}-{os.environ['RANK']}.pt")
    torch.distributed.barrier()  # none leaves while another still talks to it: gloo's threads would end the process
    torch.distributed.destroy_process_group()


def run_ranks(job: str, folder: Path) -> list[dict[str, Any]]:
    """Run `work` in two processes and return what each found. An error of one, or the time limit, ends both.

    Raises
    ------
    AssertionError
        A process failed, with the end of what the two printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(RANKS)}
    shared |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    logs = [folder / f"{job}-{rank}.log" for rank in range(RANKS)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank, log in enumerate(logs):
            with log.open("w") as output:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, __file__, job, str(folder)],
                        env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
        limit = time.monotonic() + TIMEOUT_S
        # A process whose partner died would wait for it, so the first failure ends the wait.
        while True:
            codes = [process.poll() for process in processes]
            if None not in codes or any(codes) or time.monotonic() > limit:
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ends = [f"rank {i} ended with {codes[i]}:\n{log.read_text()[-2000:]}" for i, log in enumerate(logs)]
    assert codes == [0] * RANKS, "\n".join(ends)
    return [torch.load(folder / f"{job}-{rank}.pt") for rank in range(RANKS)]


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
