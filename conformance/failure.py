"""A failure that can be read: what was violated, by whom, where, by how much, after which calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kiv_reference import LayerStore

from .journal import Journal


class Mismatch(AssertionError):
    """An implementation does not do what a clause of SPEC.md says."""

    def __init__(self, clause: str, text: str) -> None:
        super().__init__(text)
        self.clause = clause


@dataclass
class Scene:
    """Who is being checked, and what led here."""

    journal: Journal
    store: LayerStore
    layer: int = 0
    where: dict[str, int] = field(default_factory=dict)

    def at(self, **where: int) -> Scene:
        """The same scene, further down: block, sequence, head, query."""
        return Scene(self.journal, self.store, self.layer, {**self.where, **where})

    def require(self, condition: bool, clause: str, what: str, **facts: Any) -> None:
        """Raise a `Mismatch` unless `condition` holds."""
        if not condition:
            raise self.mismatch(clause, what, **facts)

    def mismatch(self, clause: str, what: str, **facts: Any) -> Mismatch:
        """The failure, told in full."""
        place = ", ".join(f"{k} {v}" for k, v in {"layer": self.layer, **self.where}.items())
        lines = [
            f"SPEC {clause}: {what}",
            f"implementation: {self.journal.target.name}",
            f"first difference: {place}",
            *(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()),
            f"tier layout: {_layout(self.store)}",
            "operations:",
            *(f"  {line}" for line in self.journal.log()),
            "to reproduce:",
            *(f"  {line}" for line in self.journal.snippet().splitlines()),
        ]
        return Mismatch(clause, "\n".join(lines))


def _layout(store: LayerStore) -> str:
    try:
        return f"{store.tokens()}, {store.memory()}"
    except Exception as error:
        return f"not available, {type(error).__name__}: {error}"
