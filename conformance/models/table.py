"""The table of model types, `docs/models.md`, and the results behind it, `docs/models.json`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
import transformers

from .fast import SMALL
from .feeds import TOKENS
from .outcome import Outcome
from .reasons import reason_for

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_MEANING = {
    "supported": "full-attention layers are KIV's, every logit equals the stock cache's to rounding, and fast equals "
    "the reference",
    "delegated": "nothing to retrieve: no layer of plain full attention; the cache works and equals the stock cache",
    "refused": "an error before any number, with the way out",
    "no cache": "transformers itself does not run this class with a DynamicCache",
    "not tried": "no tiny model could be built here",
    "wrong": "a defect",
}


def load(path: Path) -> dict[str, Outcome]:
    """Return the results that `store` wrote, by model type; empty if there are none."""
    if not path.exists():
        return {}
    return {name: Outcome(**fields) for name, fields in json.loads(path.read_text(encoding="utf-8")).items()}


def store(path: Path, outcomes: dict[str, Outcome]) -> None:
    """Write results for `load`."""
    data = {name: asdict(outcomes[name]) for name in sorted(outcomes)}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


@dataclass
class Section:
    """A part of the table: a heading, a sentence, and what was found."""

    title: str
    about: str
    outcomes: list[Outcome]


def render(sections: Iterable[Section]) -> str:
    """Return the text of `docs/models.md`."""
    parts = [
        "# Model types",
        "",
        "Made by `python -m conformance.models`; do not edit. For each type a tiny random model is fed a text of "
        f"{TOKENS} tokens in one shot, in chunks, token by token, and as a left-padded batch, with a hot window of 8, "
        "under exact budget. In float64 the logits must agree to 1e-10 of the largest; a model that attends in float32 "
        "all the same is compared in float32, to 1e-4. `distance` is the largest found, in units of that bound. "
        "`control` is the same distance with nearly every cold token left out on purpose, which must be above 1.",
        "",
        f"Then the fast implementation and the reference answer every attention call side by side, fed the same ways "
        f"under a budget of {SMALL.retrieve_tokens} tokens from {SMALL.candidate_tokens} candidates: "
        "selections must be admissible, and outputs equal to rounding after the hand-over of the selection (SPEC 11.2, "
        "11.3). `fast` is the number of selections that were compared: one for each query block, sequence and KV head "
        "that had more cold tokens than the budget.",
        "",
        "`own code` are classes that do not call transformers' attention interface: `kiv_hf.use_kiv` has a version of "
        "each.",
        "",
        f"transformers {transformers.__version__}, torch {torch.__version__}, CPU, one thread.",
        "",
    ]
    sections = list(sections)
    parts += _counts(sections)
    for section in sections:
        parts += _section(section)
    return "\n".join(parts)


def _counts(sections: list[Section]) -> list[str]:
    """Return the table on top: how many types of each section have which result."""
    counts = [Counter(outcome.verdict for outcome in section.outcomes) for section in sections]
    titles = [section.title[0].lower() + section.title[1:] for section in sections]
    lines = [f"| result | {' | '.join(titles)} | all | meaning |", f"|---|{'---:|' * (len(sections) + 1)}---|"]
    for name in _MEANING:
        each = [count[name] for count in counts]
        if any(each) or name == "wrong":
            lines.append(f"| {name} | {' | '.join(map(str, each))} | {sum(each)} | {_MEANING[name]} |")
    each = [len(section.outcomes) for section in sections]
    return [*lines, f"| all | {' | '.join(map(str, each))} | {sum(each)} | |", ""]


def _section(section: Section) -> list[str]:
    lines = [f"## {section.title}", "", section.about, ""]
    lines += [
        "| type | result | attention | KIV layers | distance | control | fast |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for outcome in section.outcomes:
        compared = outcome.verdict in ("supported", "delegated")
        distance = f"{outcome.ratio:.2f}" if compared else ""
        control = f"{outcome.control:.0e}" if outcome.verdict == "supported" else ""
        kinds = ", ".join(outcome.kinds)
        cells = [outcome.model_type, outcome.verdict, kinds, outcome.kiv_layers or "", distance, control]
        lines.append(f"| {' | '.join(map(str, cells))} | {outcome.fast or ''} |")
    parts = [outcome for outcome in section.outcomes if outcome.part]
    if parts:
        lines += ["", f"### Only a part was fed: {section.title[0].lower()}{section.title[1:]}", ""]
        lines += [f"- **{outcome.model_type}**: {outcome.part}." for outcome in parts]
    lines += ["", f"### Not supported: {section.title[0].lower()}{section.title[1:]}", ""]
    for outcome in section.outcomes:
        if outcome.verdict in ("refused", "no cache", "not tried", "wrong"):
            lines += [f"- **{outcome.model_type}** ({outcome.verdict}): {reason_for(outcome)}"]
            lines += [f"  Error: `{outcome.reason.replace('`', '')}`"]
    return [*lines, ""]
