"""What a full run asks, and of whom: sizes chosen so that models, tasks and rivals together stay within an hour.

On two quiet cores a decode step costs about 0.1 s on either model, whatever the cache. So time is the number of tokens
that go through caches one at a time: about 16 a question, asked of the rivals only where full attention is right, and
150 for each context and system of the model level. A document is prefilled once and shared by all its questions and
all systems; the tasks that leave room share a document.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .tasks import (
    Quiz,
    joined,
    near_duplicates,
    needle_grid,
    phonebook,
    several_needles,
    sightings,
    variable_tracking,
)

HOT_TOKENS = {"gemma": 2048, "smollm2": 1024}
"""Short name of a model -> hot window of all systems, as at the attention level."""

QUICK_TOKENS = {"gemma": 2560, "smollm2": 1536}
"""Context of a run that only shows that it runs: a little is cold."""

TRAINED_TOKENS = {"gemma": 32768, "smollm2": 8192}
"""Longest context of a model's training."""

CONTEXTS = {"gemma": (8192, 32768), "smollm2": (4096, 7680)}
"""Tokens of natural text before what the model level scores."""

SCORED_TOKENS = 96
GREEDY_TOKENS = 48

ROTATIONS = {
    "gemma": {8192: 2, 16384: 1, 32768: 1, 49152: 1},
    "smollm2": {4096: 3, 7680: 2},
}
"""Tokens of a document -> documents of that length, each with the ten needle phrasings at other depths."""

PHONEBOOK_TOKENS = {"gemma": 8192, "smollm2": 4096}
"""Tokens of the document with the phonebook: a length at which the model can still read one."""

NEEDLE_DEPTHS = tuple((i + 0.5) / 10 for i in range(10))


@dataclass(frozen=True)
class Document:
    """Natural text of a length with a quiz planted in it."""

    model: str
    name: str
    tokens: int
    quiz: Quiz


def documents(model: str, seed: int, quick: bool, longest: int | None) -> Iterator[Document]:
    """Every document that a model is asked about, shortest first."""
    if quick:
        rng = random.Random(f"{seed} {model} quick")
        quiz = joined(needle_grid(rng, NEEDLE_DEPTHS[1::5]), near_duplicates(rng, 4, 1), sightings(rng, (3, 1), 1))
        yield Document(model, "quick", QUICK_TOKENS[model], quiz)
        return
    for length, rotations in ROTATIONS[model].items():
        if length > (longest or length):
            continue
        rng = random.Random(f"{seed} {model} {length}")
        for rotation in range(rotations):
            parts = [needle_grid(random.Random(f"{seed} needles"), NEEDLE_DEPTHS, rotation)]
            if rotation == 0:
                parts += [near_duplicates(rng, 16, 8), several_needles(rng, 3)]
                # Beyond the length of its training a model is asked to retrieve, not to reason.
                if length <= TRAINED_TOKENS[model]:
                    parts += [variable_tracking(rng, 4), sightings(rng, (6, 2), 4)]
            yield Document(model, f"scattered {rotation}", length, joined(*parts))
        if length == PHONEBOOK_TOKENS[model]:
            yield Document(model, "phonebook", length, phonebook(rng, 120, 100, 0.3))


def context_lengths(model: str, quick: bool, longest: int | None) -> list[int]:
    """Contexts of the model level."""
    return [QUICK_TOKENS[model]] if quick else [n for n in CONTEXTS[model] if n <= (longest or n)]
