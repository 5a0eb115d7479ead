"""The caches under test: KIV, and what a user of transformers has today."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from kiv_hf import KIVConfig

from benchmarks.original import OriginalPool

from .plan import HOT_TOKENS

Kind = Literal["full", "kiv", "original", "quantised", "offloaded", "window"]

FULL = "full attention"
SINK_TOKENS = 4


@dataclass(frozen=True)
class System:
    """A cache under test.

    Attributes
    ----------
    name : str
    kind : Kind
        "full" is a `DynamicCache`.
    config : KIVConfig, or None
        Of "kiv".
    impl : str or callable
        Of "kiv" and "original".
    backend, options : str, dict
        Of "quantised".
    hot_tokens : int
        Of "window".
    """

    name: str
    kind: Kind
    config: KIVConfig | None = None
    impl: Any = None
    backend: str = ""
    options: tuple[tuple[str, int], ...] = ()
    hot_tokens: int = 0

    @property
    def rival(self) -> bool:
        """Whether it is a user's other choice, which may be missing on a machine or refuse a model."""
        return self.kind in ("quantised", "offloaded", "window")


def asked(**knobs: Any) -> KIVConfig:
    """A configuration for a context that is filled, not read: of its prompt the answers are thrown away."""
    return KIVConfig(**knobs, prefill="window", query_block_tokens=1024, exact_suffix_tokens=0)


def systems(model: str, impl: str) -> list[System]:
    """Full attention first, then KIV as it is shipped but for the hot window, the original's rule, and the rivals."""
    hot = HOT_TOKENS[model]
    found = [
        System(FULL, "full"),
        System("KIV", "kiv", asked(hot_tokens=hot), impl),
    ]
    pool = partial(OriginalPool, hot_tokens=hot)
    found.append(System("the original KIV's rule", "original", KIVConfig(), pool))
    # Group-wise backends with the axes that transformers' documentation recommends for them.
    hqq = (("nbits", 4), ("axis_key", 1), ("axis_value", 1))
    found += [
        System("sinks + window", "window", hot_tokens=hot),
        System("quantised cache, fp8", "quantised", backend="fp8"),
        System("quantised cache, 4 bits (quanto)", "quantised", backend="quanto", options=(("nbits", 4),)),
        System("quantised cache, 4 bits (HQQ)", "quantised", backend="hqq", options=hqq),
        System("offloaded cache", "offloaded"),
    ]
    return found
