"""Conditions in terms of the snippet that a failure prints: `output` and `report` are those of its last attend."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .failure import Scene


def of_head(scene: Scene, field: str) -> str:
    """Return a tensor of a report about one head, in terms of the snippet."""
    where = scene.where
    return f"report.blocks[{where['block']}].{field}[{where['sequence']}, {where['kv_head']}]"


def reported(scene: Scene, field: str) -> str:
    """Return what one head retrieved, in terms of the snippet."""
    return f"[i for i in {of_head(scene, field)}.tolist() if i >= 0]"


def not_both(scene: Scene, what: str, chosen: int, rejected: int) -> str:
    """Say that nobody may choose the one and leave out the other, in terms of the snippet."""
    picked = reported(scene, what.replace(" ", "_"))
    return f"{chosen} not in (picked := {picked}) or {rejected} in picked"


def at_query(scene: Scene, field: str) -> str:
    """Return a number of a report about one query, in terms of the snippet."""
    where = scene.where
    block = f"report.blocks[{where['block']}]"
    return f"float({block}.{field}[{where['sequence']}, {where['head']}, {where['query']} - {block}.first_query])"
