"""A failure that can be read: what was violated, by whom, where, by how much, after which calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kiv_reference import LayerStore

    from .operation_log import OperationLog


class Mismatch(AssertionError):
    """An implementation does not do what a clause of SPEC.md says."""

    def __init__(self, clause: str, text: str) -> None:
        super().__init__(text)
        self.clause = clause


@dataclass
class Scene:
    """Who is being checked, and what led here."""

    operations: OperationLog
    store: LayerStore
    layer: int = 0
    where: dict[str, int] = field(default_factory=dict)
    name: str = "a"  # of the store in the snippet

    def at(self, **where: int) -> Scene:
        """Return the same scene, further down: block, sequence, head, query."""
        return Scene(self.operations, self.store, self.layer, {**self.where, **where}, self.name)

    def require(self, condition: bool, clause: str, what: str, claim: str = "", **facts: Any) -> None:
        """Raise a `Mismatch` unless `condition` holds."""
        if not condition:
            raise self.mismatch(clause, what, claim, **facts)

    def mismatch(self, clause: str, what: str, claim: str = "", **facts: Any) -> Mismatch:
        """Return the failure, told in full.

        Parameters
        ----------
        claim : the condition, in terms of the snippet: `output` and `report` of its last attend, stores by name.
            Without one the snippet asserts that something else comes out than did.
        """
        claim = f"assert {claim or self._otherwise()}, {f'SPEC {clause}: {what}'!r}"
        place = ", ".join(f"{k} {v}" for k, v in {"layer": self.layer, **self.where}.items())
        lines = [
            f"SPEC {clause}: {what}",
            f"implementation: {self.operations.target.name}",
            f"first difference: {place}",
            *(f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()),
            f"tier layout: {_layout(self.store)}",
            "operations:",
            *(f"  {line}" for line in self.operations.log()),
            "to reproduce:",
            *(f"  {line}" for line in self.operations.snippet(claim).splitlines()),
        ]
        return Mismatch(clause, "\n".join(lines))

    def _otherwise(self) -> str:
        if self.operations.calls and self.operations.calls[-1][1] == "attend" and self.operations.outputs:
            return f"str(output.tolist()) != {str(self.operations.outputs[-1].tolist())!r}"
        return f"str({self.name}.tokens()) + str({self.name}.memory()) != {_told(self.store)!r}"


def _told(store: LayerStore) -> str:
    try:
        return str(store.tokens()) + str(store.memory())
    except Exception as error:  # a claim cannot be made of a store that does not even tell what it holds
        return f"{type(error).__name__}: {error}"


def _layout(store: LayerStore) -> str:
    try:
        return f"{store.tokens()}, {store.memory()}"
    except Exception as error:
        return f"not available, {type(error).__name__}: {error}"
