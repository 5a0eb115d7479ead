"""Compare KIV with the stock cache on every model type and write `docs/models.md`.

`python -m conformance.models` runs every type. With names, those alone run and their rows change; the other rows stay
as `docs/models.json` has them.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from .catalog import causal_types, multimodal_types
from .sweep import sweep
from .table import Section, load, render, store

if TYPE_CHECKING:
    from .outcome import Outcome

DOCS = Path(__file__).parents[2] / "docs"
_SECTIONS = (
    ("Causal language models", "Every type of transformers' causal-LM mapping.", causal_types),
    (
        "Text side of multimodal models",
        "Types of transformers' image-text-to-text, multimodal and speech mappings that are not above, fed with text "
        "alone. Where a model demands an image or a sound beside the text, or attends across to an encoder, it gets "
        "random states instead of that.",
        multimodal_types,
    ),
)


def main(names: list[str]) -> int:
    """Run the sweep and write the page; return 1 if any type gave wrong numbers, else 0."""
    warnings.simplefilter("ignore")
    DOCS.mkdir(exist_ok=True)
    outcomes = load(DOCS / "models.json") if names else {}
    start = time.perf_counter()
    for outcome in sweep(names or causal_types() + multimodal_types()):
        seconds, start = time.perf_counter() - start, time.perf_counter()
        print(f"{_line(outcome)}, {seconds:.1f} s", flush=True)
        outcomes[outcome.model_type] = outcome
        store(DOCS / "models.json", outcomes)
    sections = [
        Section(title, about, [outcomes[name] for name in types() if name in outcomes])
        for title, about, types in _SECTIONS
        if any(name in outcomes for name in types())
    ]
    (DOCS / "models.md").write_text(render(sections), encoding="utf-8")
    return int(any(outcome.verdict == "wrong" for outcome in outcomes.values()))


def _line(outcome: Outcome) -> str:
    kinds = ", ".join(outcome.kinds)
    return " | ".join([outcome.model_type, outcome.verdict, f"{outcome.ratio:.2f} of the bound", kinds, outcome.reason])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
