"""Decode and prefill of models with random weights on a device: KIV, and a plain `DynamicCache`."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import psutil
import torch
from kiv_hf import KIVCache, KIVConfig
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, PreTrainedModel

from .gpu_journal import Cut
from .profiled import profiled

if TYPE_CHECKING:
    from collections.abc import Callable

K = 1024
PROMPT_TOKENS, FILL_TOKENS = 64, 4096


@dataclass(frozen=True)
class Geometry:
    """The sizes of a model."""

    title: str
    layers: int
    query_heads: int
    heads: int
    width: int
    intermediate: int
    vocabulary: int

    @property
    def token_bytes(self) -> int:
        """Keys and values of a token in all layers, in bfloat16."""
        return 2 * 2 * self.layers * self.heads * self.width


GEOMETRIES = {
    "smollm2": Geometry("SmolLM2-135M", 30, 9, 3, 64, 1536, 49152),
    "llama": Geometry("Llama-3.1-8B", 32, 32, 8, 128, 14336, 128256),
}
QUICK = {
    "smollm2": Geometry("SmolLM2-135M, cut", 2, 9, 3, 64, 64, 128),
    "llama": Geometry("Llama-3.1-8B, cut", 1, 32, 8, 128, 64, 128),
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured: contexts and the chunk of a prefill in tokens, decode steps, traced steps."""

    contexts: tuple[int, ...] = (4 * K, 32 * K, 128 * K, 512 * K)
    chunk: int = 1024
    steps: int = 32
    traced: int = 2
    config: KIVConfig = field(default_factory=KIVConfig)


QUICK_SIZES = Sizes(
    (512, 1024), 64, 2, 1, KIVConfig(hot_tokens=128, page_tokens=64, candidate_tokens=128, retrieve_tokens=64)
)


class Bench:
    """One model at a time, on one device.

    Parameters
    ----------
    device : torch.device
    sizes : Sizes
    end : time.monotonic() at which to stop
    """

    def __init__(self, device: torch.device, sizes: Sizes, end: float) -> None:
        self.device, self.sizes, self.end = device, sizes, end
        self._model: tuple[Geometry, PreTrainedModel] | None = None

    def model(self, geometry: Geometry) -> PreTrainedModel:
        """Return the model with random bfloat16 weights, made on the device; the last one is freed."""
        if self._model is None or self._model[0] != geometry:
            self._model = None
            self._collect()
            config = LlamaConfig(
                vocab_size=geometry.vocabulary, hidden_size=geometry.query_heads * geometry.width,
                intermediate_size=geometry.intermediate, num_hidden_layers=geometry.layers,
                num_attention_heads=geometry.query_heads, num_key_value_heads=geometry.heads,
                head_dim=geometry.width, max_position_embeddings=1 << 20, tie_word_embeddings=True,
            )  # fmt: skip
            torch.manual_seed(0)
            with self.device:
                made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
            self._model = geometry, made.eval()
        return self._model[1]

    @torch.inference_mode()
    def measure(self, geometry: Geometry, tokens: int, subject: str) -> dict[str, Any]:
        """Measure "kiv" or "plain" at a context of `tokens`; what does not fit says so."""
        need, free = tokens * geometry.token_bytes * 11 // 10, free_ram()
        if subject == "kiv" and need > free:
            return {"not run": f"needs {need / 1e9:.0f} GB of RAM, and {free / 1e9:.0f} are free"}
        model = self.model(geometry)
        model.set_attn_implementation("kiv" if subject == "kiv" else "sdpa")
        config = self.sizes.config
        cache = KIVCache(model.config, config) if subject == "kiv" else DynamicCache(config=model.config)
        try:
            return self._measured(model, cache, geometry, tokens)
        except torch.OutOfMemoryError as error:
            return {"did not fit": str(error).splitlines()[0][:300]}
        finally:
            if isinstance(cache, KIVCache):
                cache.close()
            del cache
            self._collect()

    def _measured(self, model: Any, cache: Any, geometry: Geometry, tokens: int) -> dict[str, Any]:
        sizes = self.sizes
        ids = torch.arange(sizes.chunk, device=self.device)[None] % geometry.vocabulary

        def feed(count: int) -> None:
            model(input_ids=ids[:, :count], past_key_values=cache, use_cache=True, logits_to_keep=1)

        before = self._allocated()
        begin = self._now()
        feed(min(PROMPT_TOKENS, sizes.chunk))
        self._fill(cache, geometry, tokens - 2 * sizes.chunk - cache.get_seq_length())
        filled_s = self._now() - begin
        feed(sizes.chunk)  # makes buffers
        found: dict[str, Any] = {"fill_s": filled_s, "prefill_chunk_ms": 1e3 * self._timed(lambda: feed(sizes.chunk))}
        for _ in range(3):
            feed(1)
        counters = _counters(cache)
        taken = [1e3 * self._timed(lambda: feed(1)) for _ in range(sizes.steps)]
        found |= {"step_ms": statistics.median(taken), "steps_ms": taken}
        found["read_a_step"] = {name: (now - counters[name]) / len(taken) for name, now in _counters(cache).items()}
        found["trace"] = profiled(lambda: feed(1), sizes.traced, self.device)
        found["device_bytes"] = self._allocated() - before
        found["tiers"] = cache.memory()._asdict() if isinstance(cache, KIVCache) else {}
        return found

    def _fill(self, cache: Any, geometry: Geometry, missing: int) -> None:
        """Append `missing` random tokens to every layer, past the model."""
        generator = torch.Generator(device=self.device).manual_seed(0)
        for layer in cache.layers:
            begin = 0
            if not hasattr(layer, "store"):  # written into place: a concatenation would need twice the memory
                begin = layer.keys.shape[2]
                old = layer.keys, layer.values
                layer.keys, layer.values = (
                    part.new_empty(1, geometry.heads, begin + missing, geometry.width) for part in old
                )
                layer.keys[:, :, :begin], layer.values[:, :, :begin] = old
            for first in range(0, missing, FILL_TOKENS):
                self._check_time()
                shape = 1, geometry.heads, min(FILL_TOKENS, missing - first), geometry.width
                key, value = (
                    torch.randn(shape, generator=generator, dtype=torch.bfloat16, device=self.device) for _ in "kv"
                )
                if hasattr(layer, "store"):
                    layer.store.append(key, value)
                else:
                    place = slice(begin + first, begin + first + shape[2])
                    layer.keys[:, :, place], layer.values[:, :, place] = key, value

    def _timed(self, step: Callable[[], object]) -> float:
        self._check_time()
        begin = self._now()
        step()
        return self._now() - begin

    def _check_time(self) -> None:
        if time.monotonic() > self.end:
            raise Cut

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def _collect(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _counters(cache: Any) -> dict[str, int]:
    return asdict(cast("Any", cache.pool).counters) if isinstance(cache, KIVCache) else {}


def free_ram() -> int:
    """Return the bytes of RAM that are free, within the limit of a container."""
    free = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and (most := limit.read_text().strip()) != "max":
        free = min(free, int(most) - int(used.read_text()))
    return free
