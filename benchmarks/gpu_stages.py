"""The stages of the run on a GPU, in the order in which they are tried, each with the most seconds that it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from kiv_reference.errors import KIVUnsupportedError

from . import gpu_tests
from .gpu_sizes import GEOMETRIES, PREFILLS, QUICK, QUICK_SIZES, SUBJECTS, Sizes, decode_name, prefill_name
from .gpu_targets import telling

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from .gpu_journal import Journal
    from .gpu_sizes import Geometry

DOCTOR_S, OPERATIONS_S = 120.0, 120.0

FIRST_SHARE = 0.25
"""Of the whole time, what the suite gets before models are measured; what is left after these is the suite's too."""

IMPLEMENTATIONS = ("fast", "fast-small-parts")
"""Of the conformance suite. The first decodes in Triton, the second in torch's operations, in many small parts."""


@dataclass(frozen=True)
class Stage:
    """Something to be done.

    Attributes
    ----------
    name : str
    run : takes the ``time.monotonic()`` by which it must be over
    most_s : the most seconds that it gets; None takes what is left
    """

    name: str
    run: Callable[[float], dict[str, Any]]
    most_s: Callable[[], float | None]


def stages(options: argparse.Namespace, journal: Journal) -> Iterator[Stage]:
    """Yield what is to be done, cheapest and most telling first."""
    device = torch.device(options.device)
    geometries, sizes = (QUICK, QUICK_SIZES) if options.quick else (GEOMETRIES, Sizes())

    def doctor(_: float) -> dict[str, Any]:
        from kiv_hf.cli.doctor import report

        return report(device, lambda name: None)

    def operations(_: float) -> dict[str, Any]:
        from .gpu_operations import operations

        return operations(device, geometries, sizes)

    def suite(impl: str, share: float | None) -> Stage:
        folder = journal.folder / f"conformance-{impl}"

        def run(end: float) -> dict[str, Any]:
            return gpu_tests.run(folder, impl, options.device, options.workers, options.quick, end)

        return Stage(f"conformance {impl}", run, lambda: None if share is None else share * 60 * options.minutes)

    yield Stage("doctor", doctor, lambda: DOCTOR_S)
    yield Stage("operations", operations, lambda: OPERATIONS_S)
    yield suite(IMPLEMENTATIONS[0], FIRST_SHARE)
    yield from model_stages(device, geometries, sizes, journal)
    yield from (suite(impl, None) for impl in IMPLEMENTATIONS)


def model_stages(
    device: torch.device, geometries: dict[str, Geometry], sizes: Sizes, journal: Journal
) -> Iterator[Stage]:
    """Yield a stage for each geometry, context and cache: small models first in each turn."""
    try:
        from . import gpu_models, gpu_needs
        from .gpu_predicted import predicted
    except (ImportError, KIVUnsupportedError) as error:  # transformers is not there, or too old: all else goes on
        missing = f"{type(error).__name__}: {error}"
        yield Stage("models", lambda _: {"error": missing}, lambda: 0.0)
        return
    bench, card = gpu_models.Bench(device, sizes), journal.content["run"]["card"]

    def decode(name: str, tokens: int, kind: str) -> Stage:
        geometry = geometries[name]

        def run(end: float) -> dict[str, Any]:
            return bench.decode(geometry, tokens, kind, end) | predicted(geometry, tokens, kind, card, sizes)

        return Stage(decode_name(name, tokens, kind), run, lambda: gpu_needs.decode_s(geometry, tokens, kind, sizes))

    def prefill(name: str, tokens: int, kind: str) -> Stage:
        geometry = geometries[name]

        def run(end: float) -> dict[str, Any]:
            return bench.prefill(geometry, tokens, kind, end) | predicted(geometry, tokens, kind, card, sizes)

        def most_s() -> float:
            return gpu_needs.prefill_s(name, tokens, kind, journal.content["stages"], sizes)

        return Stage(prefill_name(name, tokens, kind), run, most_s)

    for turn in range(3):
        for name in geometries:
            for tokens in sizes.contexts:
                yield from (decode(name, tokens, kind) for kind in SUBJECTS if _turn(tokens, kind, False) == turn)
                if tokens in sizes.prompts:
                    kinds = [kind for kind in PREFILLS if _turn(tokens, kind, True) == turn]
                    yield from (prefill(name, tokens, kind) for kind in kinds)


def _turn(tokens: int, kind: str, prefill: bool) -> int:
    """Return 0 for what targets read, and 2 for what pins RAM that older torch never gives back, else 1."""
    return 2 if kind == "offloaded" else 0 if telling(tokens, kind, prefill) else 1
