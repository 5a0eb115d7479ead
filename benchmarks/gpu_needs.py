"""What a stage of the run on a GPU needs, before it is begun: bytes, predicted, and the most seconds that it gets."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
import torch
from kiv_hf.cli.sizes.model import ModelSizes, model_sizes
from kiv_hf.cli.sizes.stores import decode_bytes, held, kept_bytes
from kiv_hf.cli.units import format_bytes
from transformers import LlamaConfig

from .gpu_sizes import Geometry, decode_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kiv_hf import KIVConfig

    from .gpu_sizes import Sizes

MOST_S, PREFILL_S = 420.0, 120.0
"""Of any stage, so that it fits into a run of eight minutes; of a prompt, if no chunk of it was measured."""

FILL_BYTES_S = {"kiv": 0.5e9, "plain": 10e9, "original": 0.5e9, "offloaded": 2e9}
"""Cached bytes a second that a context is filled with at least: an assumption, as all that follows."""

STEP_S = {"kiv": 0.3, "plain": 0.1, "original": 0.5, "offloaded": 0.1}
READ_BYTES_S = {"plain": 2e11, "offloaded": 2.5e9}
"""Seconds of a step at most, beside those that reading the whole cache takes."""

CHUNK_BYTES_S = 4e9
"""Of cold bytes that come over the bus for a chunk of a prompt."""


class Need(NamedTuple):
    """Bytes that a subject is predicted to need on the device and in RAM."""

    device: int
    ram: int


def model_config(geometry: Geometry) -> LlamaConfig:
    """Return the configuration of a model of a geometry."""
    return LlamaConfig(
        vocab_size=geometry.vocabulary, hidden_size=geometry.query_heads * geometry.width,
        intermediate_size=geometry.intermediate, num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.query_heads, num_key_value_heads=geometry.heads,
        head_dim=geometry.width, max_position_embeddings=1 << 20, tie_word_embeddings=True,
    )  # fmt: skip


@cache
def sizes_of(geometry: Geometry) -> ModelSizes:
    """Return what ``kiv plan`` knows of the model."""
    return model_sizes(model_config(geometry), torch.bfloat16)


def need(geometry: Geometry, tokens: int, kind: str, config: KIVConfig, chunk: int) -> Need:
    """Predict the bytes of weights and cache: an append of stock caches copies a layer beside the old one."""
    sizes = sizes_of(geometry)
    weights = sizes.weights.held_bytes(torch.bfloat16, None)
    cached = tokens * geometry.token_bytes
    layer = cached // geometry.layers
    if kind == "kiv":
        found = held(sizes.ours, config, torch.bfloat16, tokens, chunk)
        buffers = max(0, decode_bytes(sizes.ours, config, torch.bfloat16, tokens) - found.buffers)
        rows = kept_bytes(sizes.ours, config, torch.bfloat16, tokens)
        return Need(weights + found.device + found.growth + buffers + rows, found.ram)
    if kind == "original":
        return Need(weights, cached + layer)
    if kind == "offloaded":  # torch pins blocks of powers of two; one layer is used while the next one comes
        pinned = 2 * geometry.layers * (1 << (layer // 2 - 1).bit_length())
        return Need(weights + 3 * layer, pinned + layer)
    return Need(weights + cached + layer, 0)


def too_much(needs: Need, device: torch.device) -> str | None:
    """Say why a subject does not fit into what is free; None if it does, by prediction."""
    ram = free_ram()
    if device.type != "cuda":
        needs, free = Need(0, sum(needs)), 0
    else:  # what torch keeps for itself is free too
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    for where, count, left in (("on the device", needs.device, free), ("of RAM", needs.ram, ram)):
        if count > left:
            return f"needs {format_bytes(count)} {where}, predicted, and {format_bytes(left)} are free"
    return None


def decode_s(geometry: Geometry, tokens: int, kind: str, sizes: Sizes) -> float:
    """Return the most seconds that decode steps at a context get, filling included."""
    cached = tokens * geometry.token_bytes
    step = STEP_S[kind] + (cached / READ_BYTES_S[kind] if kind in READ_BYTES_S else 0)
    chunks = 2 * (1 + cached / CHUNK_BYTES_S) if kind in ("kiv", "plain") else 0
    steps = sizes.steps_s + (sizes.warm + sizes.least_steps + sizes.traced) * step
    return min(MOST_S, sizes.start_s + cached / FILL_BYTES_S[kind] + chunks + steps)


def prefill_s(name: str, tokens: int, kind: str, stages: Mapping[str, Any], sizes: Sizes) -> float:
    """Return the most seconds that a prompt gets: half more than if all chunks took what the last did, where known."""
    chunk_ms = stages.get(decode_name(name, tokens, kind.partition(" ")[0]), {}).get("prefill_chunk_ms")
    if chunk_ms is None:
        return PREFILL_S
    return min(MOST_S, sizes.start_s + 1.5e-3 * chunk_ms * tokens / sizes.chunk)


def free_ram() -> int:
    """Return the bytes of RAM that are free, within the limit of a container."""
    free = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free
