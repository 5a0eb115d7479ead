"""What a full run asks, and of whom: sizes chosen so that models, tasks and rivals together stay within an hour.

On a quiet core a decode step costs about 0.1 s on either model, whatever the cache. So time is the number of tokens
that go through caches one at a time: about 13 a question, asked of the rivals only where full attention is right, and
100 for each context and system of the model level. A document is prefilled once and shared by all its questions and
all systems; tasks share a document, but for the phonebook.
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
"""Short name of a model -> hot window of all systems."""

QUICK_TOKENS = {"gemma": 2560, "smollm2": 1536}
"""Context of a run that only shows that it runs: a little is cold."""

TRAINED_TOKENS = {"gemma": 32768, "smollm2": 8192}
"""Longest context of a model's training."""

CONTEXTS = {"gemma": (8192, 32768), "smollm2": (4096, 7680)}
"""Tokens of natural text before what the model level scores."""

ONE_TEXT_TOKENS = 32768
"""From this context on the model level takes one text, not two."""

SCORED_TOKENS = 64
GREEDY_TOKENS = 32

LENGTHS = {"gemma": (8192, 16384, 32768, 49152), "smollm2": (4096, 7680)}
"""Tokens of the documents with scattered facts."""

DENSE_TOKENS = {"gemma": (8192, 32768), "smollm2": (4096, 7680)}
"""Of them, those that get every task; the others get needles, several needles and near-duplicates alone."""

PHONEBOOK_TOKENS = {"gemma": 4096, "smollm2": 3072}
"""Tokens of the document with the phonebook: a length at which the model can still read a little of one."""

RIVAL_TOKENS = {"gemma": 32768, "smollm2": 4096}
"""Longest documents that the dearer rivals are asked about; the original's rule and sinks + window see them all."""

DUPLICATES = {"gemma": ("word", 8), "smollm2": ("number", 12)}
"""Kind and number of near-duplicate facts, as many as the model can tell apart at all with full attention."""

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
    kind, keys = DUPLICATES[model]
    if quick:
        rng = random.Random(f"{seed} {model} quick")
        needles, duplicates = needle_grid(rng, NEEDLE_DEPTHS[1::5]), near_duplicates(rng, kind, 4, 1)
        quiz = joined(needles, duplicates, sightings(rng, (3, 2), 1, 1))
        yield Document(model, "quick", QUICK_TOKENS[model], quiz)
        return
    rng = random.Random(f"{seed} {model} phonebook")
    if PHONEBOOK_TOKENS[model] <= (longest or PHONEBOOK_TOKENS[model]):
        yield Document(model, "phonebook", PHONEBOOK_TOKENS[model], phonebook(rng, 120, 100, 0.2))
    for rotation, length in enumerate(LENGTHS[model]):
        if length > (longest or length):
            continue
        rng = random.Random(f"{seed} {model} {length}")
        parts = [needle_grid(random.Random(f"{seed} needles"), NEEDLE_DEPTHS, 3 * rotation)]
        parts += [several_needles(rng, 2), near_duplicates(rng, kind, keys, keys)]
        if length in DENSE_TOKENS[model]:
            parts += [variable_tracking(rng, 2), sightings(rng, (8, 3), 6, 2)]
        yield Document(model, "scattered", length, joined(*parts))


def context_lengths(model: str, quick: bool, longest: int | None) -> list[int]:
    """Contexts of the model level."""
    return [QUICK_TOKENS[model]] if quick else [n for n in CONTEXTS[model] if n <= (longest or n)]


def text_count(length: int, quick: bool) -> int:
    """Texts of the model level at a context."""
    return 1 if quick or length >= ONE_TEXT_TOKENS else 2
