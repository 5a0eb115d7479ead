"""What the run on a GPU measures: geometries, contexts and the names of the stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from kiv_reference.config import KIVConfig

K = 1024

SUBJECTS = ("kiv", "plain", "original", "offloaded")
"""KIV; transformers' `DynamicCache`; the original KIV's rule; `OffloadedCache`, which transformers now spells
``DynamicCache(offloading=True)``."""

PREFILLS = ("kiv", "plain", "plain in one pass", "offloaded")
"""How prompts are read: in chunks but for one. The original's rule says nothing of prompts."""


@dataclass(frozen=True)
class Geometry:
    """The sizes of a model of Llama's kind."""

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
    "wide": Geometry("3 layers, heads of 512 channels", 3, 8, 1, 512, 4096, 32768),
    "llama": Geometry("Llama-3.1-8B", 32, 32, 8, 128, 14336, 128256),
}
QUICK = {
    "smollm2": Geometry("SmolLM2-135M, cut", 2, 9, 3, 64, 64, 128),
    "wide": Geometry("a layer, heads of 512 channels", 1, 2, 1, 512, 64, 128),
    "llama": Geometry("Llama-3.1-8B, cut", 1, 32, 8, 128, 64, 128),
}


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes
    ----------
    contexts, prompts : tuple of int
        Tokens before a decode step; tokens of a prompt.
    chunk, prompt_chunk : int
        Tokens of a chunk at the end of a context, and of a prompt's chunks.
    steps, least_steps, steps_s :
        Decode steps, and how many there are at least of those that take more than `steps_s` seconds together.
    warm, traced : int
        Steps before those, in which graphs are captured, and under the profiler.
    start_s : float
        Seconds at most for model, libraries and the first compilation of kernels: an assumption.
    """

    contexts: tuple[int, ...] = (4 * K, 32 * K, 128 * K, 512 * K, 1024 * K)
    prompts: tuple[int, ...] = (32 * K, 128 * K)
    chunk: int = 1024
    prompt_chunk: int = 8192
    steps: int = 32
    least_steps: int = 3
    steps_s: float = 5.0
    warm: int = 4
    traced: int = 2
    start_s: float = 45.0
    config: KIVConfig = field(default_factory=KIVConfig)


QUICK_SIZES = Sizes(
    (512, 1024), (512,), 64, 128, 2, 2, 5.0, 3, 1, 400.0,
    KIVConfig(hot_tokens=128, page_tokens=64, candidate_tokens=128, retrieve_tokens=64),
)  # fmt: skip


def decode_name(geometry: str, tokens: int, kind: str) -> str:
    """Name the stage that measures decode steps; `kiv plan` reads these."""
    return f"{geometry} {tokens} {kind}"


def prefill_name(geometry: str, tokens: int, kind: str) -> str:
    """Name the stage that reads a prompt."""
    return f"{geometry} {tokens} {kind}, prefill"
