"""How long a step and a prompt are predicted to take: bytes and operations, over what a card moves and computes.

A step on a device is one layer after another, each of eight launches: append; scan, which looks at every code and
writes an estimate for each query head; rank, which sums these up by KV head; choose; read, which multiplies the keys of
the candidates; widen, for the heads that ask for as many again; attend; combine, which also keeps what came from RAM.
All but the first are a graph, with a copy of the query before it and one of the results behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiv_fast.tuning import Tuning

from ..sizes.stores import index_bytes
from .cards import HOST_ROW_BYTES, MATMUL_SHARE, VRAM_SHARE, Card

if TYPE_CHECKING:
    import torch
    from kiv_reference.config import KIVConfig

    from ..sizes.layers import LayerSizes
    from ..sizes.model import ModelSizes

KIV_LAUNCHES, LAYER_LAUNCHES, ATTENTION_LAUNCHES = 10, 40, 2
"""Of a layer's step: KIV's own, those of a whole plain layer of Llama, and of these the ones that KIV's replace."""

KIV_CALLS = 4
"""Launches that Python begins for KIV's own: of a token, a query, a graph, results."""

GRAPH_S, EAGER_S = 2e-6, 15e-6
"""Seconds that a device loses between two kernels, as in a CUDA graph, and that Python takes to launch one."""

CHOOSE_S = 32e-6
"""Of a layer: two exact selections, each by one block of threads for each KV head, whatever the context."""

KEY_HITS, VALUE_HITS = 0.88, 0.70
"""Of keys and values that a step reads, those that are among the rows kept on the device."""

WIDENED, WIDENED_TOKENS = 0.5, 1 << 20
"""Share of heads and steps that read as many candidates again (SPEC 4.9), at this context; in proportion below it."""

DISK_BYTES_S, DISK_ROW_BYTES, DISK_WAIT_S = 2e9, 4096, 100e-6
"""A disk reads blocks of this size at this rate when asked for many at once, and a layer waits for it once."""

DISK_HIT_RATE = 0.9
"""Of rows on disk that a step reads, those that are kept in RAM from the steps before."""


@dataclass(frozen=True)
class Moved:
    """What a step of the whole model moves, in bytes, and how often it waits.

    Attributes
    ----------
    vram, host, disk : float
        Read or written on the device; read from RAM over PCIe; read from disk.
    launches, calls : int
        Of kernels; of those, and of graphs, that Python begins.
    waits_s : float
        Seconds that depend on nothing of these.
    """

    vram: float = 0
    host: float = 0
    disk: float = 0
    launches: int = 0
    calls: int = 0
    waits_s: float = 0

    def __add__(self, other: Moved) -> Moved:
        return Moved(
            self.vram + other.vram, self.host + other.host, self.disk + other.disk,
            self.launches + other.launches, self.calls + other.calls, self.waits_s + other.waits_s,
        )  # fmt: skip


@dataclass(frozen=True)
class StepTime:
    """Seconds of a decode step: if Python never keeps the device waiting, and as it launches the rest of a model."""

    graph: float
    eager: float


def step_time(moved: Moved, card: Card) -> StepTime:
    """Predict the time of a step; from Python, which runs ahead, either the device takes longer or the launches do."""
    busy = moved.vram / (VRAM_SHARE * card.vram) + moved.host / card.host + moved.disk / DISK_BYTES_S + moved.waits_s
    busy += moved.launches * GRAPH_S
    return StepTime(busy, max(busy, moved.calls * EAGER_S))


@dataclass(frozen=True)
class Work:
    """What is to be done, whatever the card.

    Attributes
    ----------
    weight_bytes : float
        Bytes of weights that a step reads.
    tokens : int
        Of the context.
    kept_rows : bool
        Whether the device keeps rows of the last steps.
    disk_share : float
        Of the cold tokens, those on disk.
    """

    sizes: ModelSizes
    weight_bytes: float
    dtype: torch.dtype
    config: KIVConfig
    tokens: int
    kept_rows: bool = True
    disk_share: float = 0.0


def plain_step(work: Work) -> Moved:
    """Return what a step with a plain cache moves: weights, and everything that the cache holds."""
    layers = work.sizes.layers
    cache = sum(layer.bytes_at(work.tokens, work.dtype) for layer in layers)
    count = LAYER_LAUNCHES * len(layers)
    return Moved(vram=work.weight_bytes + cache, launches=count, calls=count)


def kiv_step(work: Work) -> Moved:
    """Return what a step with a KIV cache moves."""
    others = work.sizes.others_bytes(work.tokens, work.dtype)
    count = LAYER_LAUNCHES * len(work.sizes.layers)
    moved = Moved(work.weight_bytes + others, launches=count, calls=count)
    for layer in work.sizes.ours:
        moved += layer_step(layer, work)
    return moved


def layer_step(layer: LayerSizes, work: Work) -> Moved:
    """Return what one KIV layer's step moves beside the layer's weights."""
    config, dtype = work.config, work.dtype
    pages = config.cold_pages(work.tokens)
    cold, token = pages * config.page_tokens, layer.token_numbers * dtype.itemsize
    recent = Moved(vram=token * (work.tokens - cold))
    if not pages:
        return recent
    widths = layer.key_width * dtype.itemsize, layer.value_width * dtype.itemsize
    if config.retrieve_tokens is None or cold <= config.candidate_tokens:
        # All of them (SPEC 4.1): in one step from what the device keeps, or tile by tile, which asks for nothing there.
        asked = config.candidate_tokens, config.retrieve_tokens or config.candidate_tokens
        few = work.kept_rows and cold <= config.candidate_tokens
        hits = [min(1.0, Tuning.device_row_steps * count / cold) if few else 0.0 for count in asked]
        rows = [(layer.heads * float(cold), width, hit, 1.0) for width, hit in zip(widths, hits, strict=True)]
        return recent + _read(rows, work, 0)
    estimates, sums = 4 * layer.query_heads * cold, 4 * layer.heads * cold
    # The estimates are written, summed up and read for the tail; the sums are written and read.
    scanned = Moved(pages * index_bytes(layer, config, dtype) + 3 * estimates + 2 * sums, waits_s=CHOOSE_S)
    again = WIDENED * min(1.0, work.tokens / WIDENED_TOKENS)
    keys = layer.heads * min(float(cold), config.candidate_tokens * (1 + again))
    values = layer.heads * float(min(config.retrieve_tokens, cold))
    hits = (KEY_HITS, VALUE_HITS) if work.kept_rows else (0.0, 0.0)
    rows = list(zip((keys, values), widths, hits, (1 - DISK_HIT_RATE,) * 2, strict=True))
    return recent + scanned + _read(rows, work, 1)


def _read(rows: list[tuple[float, int, float, float]], work: Work, scattered: int) -> Moved:
    """Return what reading cold rows moves: how many, their bytes, shares that the device keeps and that RAM lacks.

    A scattered row that is shorter than a burst of PCIe, or than a block of a disk, takes as long as one.
    """
    near = sum(n * size * hit for n, size, hit, _ in rows)
    far = sum(n * max(size, scattered * HOST_ROW_BYTES) * (1 - hit) for n, size, hit, _ in rows)
    disk = sum(n * max(size, scattered * DISK_ROW_BYTES) * (1 - hit) * lacks for n, size, hit, lacks in rows)
    launches, calls = (count - ATTENTION_LAUNCHES for count in (KIV_LAUNCHES, KIV_CALLS))
    return Moved(near, far, disk * work.disk_share, launches, calls, DISK_WAIT_S if work.disk_share else 0.0)


def prefill_s(work: Work, chunk: int, card: Card) -> float:
    """Predict the seconds that reading a prompt takes, exactly, `chunk` tokens at a time.

    Each chunk takes the longest of: products and attention; keys and values of earlier chunks, which come over PCIe
    again, and its own, which go there; weights, which are read once a chunk.
    """
    return sum(chunk_s(work, done, min(chunk, work.tokens - done), card) for done in range(0, work.tokens, chunk))


def chunk_s(work: Work, done: int, n: int, card: Card) -> float:
    """Predict the seconds of `n` tokens of a prompt after `done`."""
    sizes, token_bytes = work.sizes, work.sizes.token_bytes(work.dtype)
    cold = work.config.cold_pages(done) * work.config.page_tokens
    operations = 2 * sizes.weights.multiplied * n
    for layer in sizes.layers:
        seen = sum_of_seen(done, n, layer.window)
        operations += 2 * layer.query_heads * (layer.key_width + layer.value_width) * seen
    compute = operations / (MATMUL_SHARE * card.products)
    host = token_bytes * (cold + n) / card.host
    disk = token_bytes * cold * work.disk_share / DISK_BYTES_S
    vram = (work.weight_bytes + token_bytes * (cold + n)) / (VRAM_SHARE * card.vram)
    return max(compute, host, disk, vram)


def sum_of_seen(done: int, n: int, window: int | None) -> int:
    """Count the pairs of a query and a token that it sees, of `n` queries after `done` tokens."""
    if window is None or done + n <= window:
        return n * done + n * (n + 1) // 2
    if done >= window:
        return n * window
    return sum_of_seen(done, window - done, window) + (done + n - window) * window
