"""Decode and prefill of models with random weights on a device, under each kind of cache."""

from __future__ import annotations

import gc
import statistics
import time
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from kiv_hf import KIVCache
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from .fill import LayerSpread, Spread, fill
from .gpu_held import counters_of, held_bytes, told, without_graphs
from .gpu_journal import Cut
from .gpu_needs import model_config, need, too_much
from .original import original_pool
from .profiled import profiled
from .subjects import Subject, chunks

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .gpu_sizes import Geometry, Sizes


class Bench:
    """One model at a time, on one device.

    Parameters
    ----------
    device : torch.device
    sizes : Sizes
    """

    def __init__(self, device: torch.device, sizes: Sizes) -> None:
        self.device, self.sizes = device, sizes
        self.end = float("inf")
        self._model: tuple[Geometry, PreTrainedModel] | None = None

    def decode(self, geometry: Geometry, tokens: int, kind: str, end: float) -> dict[str, Any]:
        """Measure decode steps at a context of `tokens`, until ``time.monotonic()`` is `end`."""
        return self._tried(geometry, tokens, kind, end, lambda subject: self._decoded(subject, geometry, tokens))

    def prefill(self, geometry: Geometry, tokens: int, kind: str, end: float) -> dict[str, Any]:
        """Read a prompt of `tokens`, and measure the whole of it, once libraries and kernels are loaded."""
        chunk = self.sizes.prompt_chunk
        stock = kind.partition(" ")[0]
        found: dict[str, Any] = {}
        for count, size in (
            (min(2 * chunk, tokens), chunk),
            (tokens, tokens if kind.endswith("in one pass") else chunk),
        ):
            read = partial(self._read, geometry=geometry, tokens=count, size=size)
            found = self._tried(geometry, count, stock, end, read)
            if "prefill_s" not in found:
                break
        return found

    def _tried(
        self, geometry: Geometry, tokens: int, kind: str, end: float, measure: Callable[[Subject], dict[str, Any]]
    ) -> dict[str, Any]:
        """Measure a subject if it fits by prediction; one that the device then has no room for leaves it empty."""
        self.end = end
        if kind == "offloaded" and self.device.type != "cuda":
            return {"left out": "transformers' offloading needs a CUDA device"}
        self._collect()
        chunk = max(self.sizes.chunk, self.sizes.prompt_chunk)
        reason = too_much(need(geometry, tokens, kind, self.sizes.config, chunk), self.device)
        if reason is not None:
            return {"left out": reason}
        try:
            with self._subject(geometry, kind) as subject:
                return measure(subject)
        except torch.OutOfMemoryError as error:
            said = str(error).splitlines()[0][:300]
        # Not while the error is handled: its frames hold what filled the device.
        self._model = None
        self._collect()
        return {"did not fit": said}

    @contextmanager
    def _subject(self, geometry: Geometry, kind: str) -> Generator[Subject]:
        model = self._made(geometry)
        model.set_attn_implementation("kiv" if kind in ("kiv", "original") else "sdpa")
        if kind == "kiv":
            cache: Any = KIVCache(model.config, self.sizes.config)
        elif kind == "original":
            cache = KIVCache(model.config, self.sizes.config, impl=original_pool)
        else:
            cache = DynamicCache(config=model.config, offloading=kind == "offloaded")
        subject = Subject(kind, model, cache)
        del cache
        try:
            yield subject
        finally:
            subject.close()

    def _made(self, geometry: Geometry) -> PreTrainedModel:
        """Return the model with random bfloat16 weights, made on the device; the last one is freed."""
        if self._model is None or self._model[0] != geometry:
            self._model = None
            self._collect()
            torch.manual_seed(0)
            with self.device:
                made = AutoModelForCausalLM.from_config(
                    model_config(geometry), dtype=torch.bfloat16, attn_implementation="sdpa"
                )
            self._model = geometry, made.eval()
        return self._model[1]

    def _decoded(self, subject: Subject, geometry: Geometry, tokens: int) -> dict[str, Any]:
        sizes, cache = self.sizes, subject.cache
        ids = self._ids(sizes.chunk, geometry)
        shape = 1, geometry.heads, 1, geometry.width
        part = Spread(torch.zeros(shape, device=self.device), torch.ones(shape, device=self.device))
        before, begin = self._allocated(), self._now()
        # The original's rule says nothing of prompts, and an offloaded cache would only copy all that it has.
        ends = 2 if subject.name in ("kiv", "plain") else 0
        spreads = [LayerSpread(part, part)] * geometry.layers
        fill(subject, spreads, ids, tokens - ends * sizes.chunk, 0, self._check_time)
        found: dict[str, Any] = {"fill_s": self._now() - begin}
        if ends:
            subject.step(ids)  # makes buffers
            found["prefill_chunk_ms"] = 1e3 * self._timed(lambda: subject.step(ids))
        token = ids[:, :1]
        for _ in range(sizes.warm):
            self._timed(lambda: subject.step(token))
        counters = counters_of(cache)
        taken = [1e3 * seconds for seconds in self.timed_steps(lambda: subject.step(token))]
        found |= {"step_ms": statistics.median(taken), "steps_ms": taken}
        found["read_a_step"] = {name: (now - counters[name]) / len(taken) for name, now in counters_of(cache).items()}
        found["trace"] = profiled(lambda: subject.step(token), sizes.traced, self.device)
        if subject.name == "kiv":
            without_graphs(cache)
            subject.step(token)
            found["launched_ms"] = statistics.median(1e3 * s for s in self.timed_steps(lambda: subject.step(token)))
        found["device_bytes"] = self._allocated() - before
        return found | held_bytes(cache, self.device) | told(cache)

    def _read(self, subject: Subject, geometry: Geometry, tokens: int, size: int) -> dict[str, Any]:
        ids = self._ids(tokens, geometry)
        before = self._allocated()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        prompt = subject.cache.chunked_prefill(tokens) if isinstance(subject.cache, KIVCache) else nullcontext()
        with prompt:
            taken = [self._timed(lambda chunk=chunk: subject.step(chunk)) for chunk in chunks(ids, size)]
        peak = torch.cuda.max_memory_allocated(self.device) - before if self.device.type == "cuda" else 0
        found = {"prefill_s": sum(taken), "chunk_tokens": size, "peak_device_bytes": peak}
        return found | held_bytes(subject.cache, self.device) | told(subject.cache)

    def timed_steps(self, step: Callable[[], object]) -> list[float]:
        """Time as many steps as are wanted, fewer if they are slow."""
        taken: list[float] = []
        while len(taken) < self.sizes.least_steps or (
            len(taken) < self.sizes.steps and sum(taken) < self.sizes.steps_s
        ):
            taken.append(self._timed(step))
        return taken

    def _ids(self, count: int, geometry: Geometry) -> torch.Tensor:
        return torch.arange(count, device=self.device)[None] % geometry.vocabulary

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
            if hasattr(torch.accelerator, "empty_host_cache"):  # what an offloaded cache had pinned
                torch.accelerator.empty_host_cache()
