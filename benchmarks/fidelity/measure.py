"""Errors and captured mass of rules over many scenes, and their statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from .attention import Answer, captured_mass, output_error
from .capture import load_capture
from .rules import Rule
from .scene import SETTINGS, Scene, Setting, capture_scene


@dataclass(frozen=True)
class Cell:
    """One scene's place: a layer of a model at the end of a context of a text."""

    model: str
    text: str
    length: int
    layer: int
    rank: int  # of the layer among the global layers


def cells(model: str, text: str, length: int) -> Iterator[Cell]:
    """Every global layer at one context."""
    for rank, layer in enumerate(load_capture(model, text).layers):
        yield Cell(model, text, length, layer, rank)


def scenes(
    which: Iterable[Cell], every: slice, settings: Mapping[str, Setting] = SETTINGS
) -> Iterator[tuple[Cell, Scene]]:
    """Load the scenes of cells, one at a time, with the queries of the window that `every` takes."""
    for cell in which:
        capture = load_capture(cell.model, cell.text)
        yield cell, capture_scene(capture, cell.layer, cell.length, settings[cell.model], every)


@dataclass
class Tally:
    """What one rule gave, an item for each scene.

    Attributes
    ----------
    errors, captured : list of [H, Q, G]
    key_tokens, value_tokens : list of [H]
        Mean distinct cold tokens read for a query.
    """

    cells: list[Cell] = field(default_factory=list)
    errors: list[torch.Tensor] = field(default_factory=list)
    captured: list[torch.Tensor] = field(default_factory=list)
    key_tokens: list[torch.Tensor] = field(default_factory=list)
    value_tokens: list[torch.Tensor] = field(default_factory=list)

    def add(self, cell: Cell, scene: Scene, answer: Answer) -> None:
        """Add what the rule answered to a scene."""
        self.cells.append(cell)
        self.errors.append(output_error(scene, answer.output))
        self.captured.append(captured_mass(scene, answer.selected))
        self.key_tokens.append(answer.key_tokens.mean(dim=1))
        self.value_tokens.append(answer.value_tokens.mean(dim=1))


@dataclass(frozen=True)
class Statistics:
    """Of one rule on one model; errors are relative output errors.

    Attributes
    ----------
    captured : float
        Mean share of the cold softmax mass that was attended exactly.
    mean, p50, p90 : float
        Over layers, heads and queries.
    worst_layer : float
        The largest mean of a layer.
    layer_means : dict
        Mean error of each layer.
    key_tokens, value_tokens : float
        Mean distinct cold tokens read, for a layer, KV head and query.
    """

    captured: float
    mean: float
    p50: float
    p90: float
    worst_layer: float
    layer_means: dict[int, float]
    key_tokens: float
    value_tokens: float


def statistics(tally: Tally) -> Statistics:
    """Summarise a tally."""
    errors = torch.cat([e.flatten() for e in tally.errors])
    by_layer: dict[int, list[torch.Tensor]] = {}
    for cell, error in zip(tally.cells, tally.errors, strict=True):
        by_layer.setdefault(cell.layer, []).append(error.flatten())
    layer_means = {layer: float(torch.cat(found).mean()) for layer, found in by_layer.items()}
    return Statistics(
        captured=float(torch.cat([c.flatten() for c in tally.captured]).mean()),
        mean=float(errors.mean()),
        p50=float(errors.quantile(0.5)),
        p90=float(errors.quantile(0.9)),
        worst_layer=max(layer_means.values()),
        layer_means=layer_means,
        key_tokens=float(torch.cat(tally.key_tokens).mean()),
        value_tokens=float(torch.cat(tally.value_tokens).mean()),
    )


def tallies(
    rules: Sequence[Rule], which: Iterable[Cell], every: slice, settings: Mapping[str, Setting] = SETTINGS
) -> dict[str, Tally]:
    """Apply every rule to every scene; what it gave by the rule's name."""
    assert len({rule.name for rule in rules}) == len(rules), "two rules of one name"
    found = {rule.name: Tally() for rule in rules}
    for cell, scene in scenes(which, every, settings):
        for rule in rules:
            found[rule.name].add(cell, scene, rule.answer(scene, settings[cell.model]))
    return found


def measure(
    rules: Sequence[Rule], which: Iterable[Cell], every: slice, settings: Mapping[str, Setting] = SETTINGS
) -> dict[str, Statistics]:
    """Apply every rule to every scene; statistics by the rule's name."""
    return {name: statistics(tally) for name, tally in tallies(rules, which, every, settings).items()}
