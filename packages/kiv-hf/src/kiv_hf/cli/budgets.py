"""Whether the budgets that the user set can hold the context: found out before the model is loaded."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from kiv_fast.tiers.folder import folder_for
from kiv_reference.errors import KIVBudgetError, refuse

from .units import format_bytes

if TYPE_CHECKING:
    from kiv_reference.config import KIVConfig

    from .estimate import Estimate


def check_budgets(need: Estimate, config: KIVConfig, spills: bool) -> None:
    """Refuse budgets that the keys and values alone exceed, and a spill folder that cannot be used.

    What the implementation books beside keys and values is its own business: close to the limit it may still refuse.

    Parameters
    ----------
    spills : bool
        The implementation moves cold pages beyond ``ram_bytes`` to disk.

    Raises
    ------
    KIVBudgetError
        ``device_bytes``, ``disk_bytes`` or the disk itself is too small.
    KIVUsageError
        ``spill_dir`` is no folder on a disk.
    """
    if config.device_bytes is not None and need.kept > config.device_bytes:
        raise refuse(
            KIVBudgetError,
            f"Sinks and hot tokens must fit into --device-bytes {format_bytes(config.device_bytes)}",
            f"{format_bytes(need.kept)} of keys and values for {need.tokens:,} tokens",
            "Raise --device-bytes, or lower --hot-tokens.",
        )
    if config.spill_dir is not None or (spills and config.ram_bytes is not None):
        folder = folder_for(config.spill_dir)
        if spills and config.ram_bytes is not None:
            _check_disk(need, config, folder, need.cold - config.ram_bytes)


def _check_disk(need: Estimate, config: KIVConfig, folder: str, spilled: int) -> None:
    if config.disk_bytes is not None and spilled > config.disk_bytes:
        raise refuse(
            KIVBudgetError,
            f"Cold pages beyond --ram-bytes must fit into --disk-bytes {format_bytes(config.disk_bytes)}",
            f"{format_bytes(spilled)} of them for {need.tokens:,} tokens",
            "Raise --disk-bytes or --ram-bytes, or use a shorter text.",
        )
    free = shutil.disk_usage(folder).free
    if spilled > free:
        raise refuse(
            KIVBudgetError,
            f"Cold pages beyond --ram-bytes must fit onto the disk of {folder}",
            f"{format_bytes(spilled)} of them for {need.tokens:,} tokens, and {format_bytes(free)} free",
            "Name a folder on a larger disk with --spill-dir, raise --ram-bytes, or use a shorter text.",
        )
