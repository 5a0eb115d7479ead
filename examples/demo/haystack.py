"""About 6,000 tokens of the King James text with one fact planted in it, and where its tokens are."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kiv_hf.cli.prompt import compose, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

FACT = "The best thing to do in San Francisco is to eat a sandwich and sit in Dolores Park on a sunny day."
QUESTION = "What is the best thing to do in San Francisco?"
PROOF = ("sandwich", "Dolores Park")
"""Words that an answer must have, and that the question does not give away."""


class Haystack(NamedTuple):
    """A prompt and the positions of the fact's tokens in it."""

    ids: torch.Tensor  # int64 [1, T]
    fact: range


def package_file(module: str, *parts: str) -> Path:
    """Return a file of an installed package without importing it: what it imports is not needed for its data."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise SystemExit(f"The demo needs the package with the module {module}: run it with `nox -s demo`.")
    return Path(spec.origin).parent.joinpath(*parts)


def bury(tokenizer: Any, tokens: int, depth: float) -> Haystack:
    """Return a prompt of about `tokens` tokens: the text from Genesis 1 on, the fact after a share `depth` of it."""
    room = tokens - len(tokenizer(FACT + QUESTION).input_ids)
    lines: list[str] = []
    for line in verses():
        room -= len(tokenizer(line + "\n").input_ids)
        if room < 0:
            break
        lines.append(line)
    lines.insert(round(depth * len(lines)), FACT)
    prompt = compose(tokenizer, "\n".join(lines), QUESTION)
    first = prompt.index(FACT)
    offsets = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    inside = [i for i, (start, end) in enumerate(offsets) if start < first + len(FACT) and end > first]
    return Haystack(encode(tokenizer, prompt), range(inside[0], inside[-1] + 1))


def verses() -> Iterator[str]:
    """Yield the King James text: numbered verses, a heading before the first of a chapter."""
    for line in package_file("bible", "data", "kjv.jsonl").read_text(encoding="utf-8").splitlines():
        verse = json.loads(line)
        heading = f"\n{verse['book']} {verse['chapter']}\n" if verse["verse"] == 1 else ""
        yield f"{heading}{verse['verse']} {verse['text']}"


def found(answer: str) -> bool:
    """Tell whether the answer holds what the fact says."""
    return all(word.lower() in answer.lower() for word in PROOF)
