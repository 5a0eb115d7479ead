"""Hard byte budgets (SPEC 10.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import KIVBudgetError, refuse

if TYPE_CHECKING:
    from .config import KIVConfig
    from .report import TierBytes


def check_budget(config: KIVConfig, needed: TierBytes) -> None:
    """Refuse what does not fit; the reference has no disk tier, so cold pages must fit into RAM.

    Parameters
    ----------
    needed : TierBytes
        What all stores of the pool would hold, in bytes.

    Raises
    ------
    KIVBudgetError
        It does not fit into `device_bytes` or `ram_bytes`.
    """
    limits = {"device_bytes": (needed.device, config.device_bytes), "ram_bytes": (needed.ram, config.ram_bytes)}
    for name, (need, limit) in limits.items():
        if limit is not None and need > limit:
            raise refuse(
                KIVBudgetError,
                f"the cache must fit into {name}={limit} (SPEC 10.2)",
                f"a need of {need} bytes",
                f"Raise {name}, or use impl='fast', which spills cold pages to disk."
                if name == "ram_bytes"
                else f"Raise {name}, lower hot_tokens, or prefill in smaller chunks.",
            )
