"""What was to be reached on a GPU, beside what was measured there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .gpu_sizes import GEOMETRIES, K, decode_name, prefill_name
from .target import Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NEAR, FAR, FARTHEST = 4 * K, 128 * K, 1024 * K

STEP_MS = {FAR: 25.0, FARTHEST: 37.0}
"""Milliseconds of a decode step of Llama-3.1-8B at most, on a card of `CARD_BYTES`."""

CARD_BYTES = 79 * 10**9
"""What torch finds on cards that are sold as having 80 GB, at the least."""

PLAIN_PREFILLS = ("plain", "plain in one pass")
"""KIV's prefill is compared with the faster of these."""


def targets(stages: Mapping[str, Mapping[str, Any]], card_bytes: int) -> Iterator[Target]:
    """Yield every target, with None where what it needs was not measured.

    Parameters
    ----------
    stages : name -> result
    card_bytes : int
        Memory of the card; on a smaller one than `CARD_BYTES` milliseconds are no target.
    """

    def step_ms(geometry: str, tokens: int, kind: str) -> float | None:
        return stages.get(decode_name(geometry, tokens, kind), {}).get("step_ms")

    def prefill_s(geometry: str, kind: str) -> float | None:
        return stages.get(prefill_name(geometry, FAR, kind), {}).get("prefill_s")

    for name, geometry in GEOMETRIES.items():
        title, far = geometry.title, step_ms(name, FAR, "kiv")
        grown = _ratio(step_ms(name, FARTHEST, "kiv"), step_ms(name, NEAR, "kiv"))
        yield Target(f"{title}: KIV at 1M ÷ KIV at 4K", 1.2, grown)
        yield Target(f"{title}: KIV at 128K ÷ plain at 4K", 1.2, _ratio(far, step_ms(name, NEAR, "plain")))
        plain = [taken for kind in PLAIN_PREFILLS if (taken := prefill_s(name, kind)) is not None]
        yield Target(
            f"{title}: prefill at 128K ÷ plain", 1.15, _ratio(prefill_s(name, "kiv"), min(plain, default=None))
        )
    if card_bytes >= CARD_BYTES:
        for tokens, most_ms in STEP_MS.items():
            title = f"{GEOMETRIES['llama'].title}: KIV at {'1M' if tokens == FARTHEST else '128K'}"
            yield Target(title, most_ms, step_ms("llama", tokens, "kiv"), "ms")


def telling(tokens: int, kind: str, prefill: bool) -> bool:
    """Tell whether a target reads a stage: these come first."""
    if prefill:
        return tokens == FAR and kind in ("kiv", *PLAIN_PREFILLS)
    return (kind == "kiv" and tokens in (NEAR, FAR, FARTHEST)) or (kind == "plain" and tokens == NEAR)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below
