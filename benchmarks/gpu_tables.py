"""The tables of a run on a GPU: targets, times beside predicted ones, counts and bytes, what has no figure and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .gpu_sizes import GEOMETRIES, PREFILLS, QUICK, SUBJECTS, decode_name, prefill_name
from .gpu_targets import PLAIN_PREFILLS, targets
from .gpu_tests import KINDS
from .target import Cell, short, show

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    Stages = Mapping[str, Mapping[str, Any]]

READS = ("key_bytes_gathered", "value_bytes_gathered", "streamed_bytes")
"""Counters of what a step read of cold pages, in RAM, by copy or directly."""

REASONS = ("left out", "did not fit", "error", "warned")
"""Why a stage has no figure, or what to know of one."""

EAGER = (
    "Every step is launched from Python. Of KIV's own kernels all but one are a graph for each layer, except under "
    '"kiv, kernel by kernel"; no model is in one. Weights, keys and '
    "values are random. Steps: medians, the device synchronised before and after each. What is read of cold pages lies "
    "in RAM: a GPU has it over the bus, but for the rows that it kept."
)


def row_cache(result: Mapping[str, Any]) -> dict[str, float]:
    """Return hit rates of the rows that a device keeps, and the bytes of a step that crossed the bus; maybe nothing."""
    read = result.get("read_a_step", {})
    rates = {f"{name} hits": (read.get(f"{name} kept", 0), read.get(f"{name} read", 0)) for name in ("keys", "values")}
    found = {name: kept / asked for name, (kept, asked) in rates.items() if asked}
    return found | {name: read[name] for name in ("bytes over the bus",) if found}


def markdown(content: Mapping[str, Any]) -> str:
    """Lay out the results."""
    found, run = content["stages"], content["run"]
    titles = {name: geometry.title for name, geometry in (QUICK if run.get("quick") else GEOMETRIES).items()}
    told = (run | content["head"] | titles).items()
    lines = ["# KIV on a GPU", "", *(f"- {key}: {value}" for key, value in told), ""]
    rows = [
        (one.name, f"≤ {show(one.limit)} {one.unit}".rstrip(), show(one.measured), one.verdict)
        for one in targets(found, run.get("device_bytes", 0))
    ]
    lines += table(("target", "limit", "measured", "verdict"), rows)
    lines += [*conformance(found), *doctor(found), *operations(found)]
    lines += [EAGER, "", *table(decode_columns(), decode_rows(found)), *table(prefill_columns(), prefill_rows(found))]
    lines += [*table(COUNTS, count_rows(found))]
    for reason in REASONS:
        told = [f"- {name}: {result[reason]}" for name, result in found.items() if reason in result]
        lines += [f"{reason.capitalize()}:", "", *told, ""] if told else []
    return "\n".join(lines).rstrip() + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]]) -> list[str]:
    """Lay out a table, nothing without rows."""
    lines = ["| " + " | ".join(show(cell) for cell in row) + " |" for row in rows]
    return ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *lines, ""] if lines else []


def conformance(found: Stages) -> Iterator[str]:
    """Yield what the suite found of each implementation."""
    for name, suite in found.items():
        if name.startswith("conformance"):
            said = ", ".join(f"{suite.get(kind, 0)} {kind}" for kind in KINDS)
            yield f"{name.capitalize()}, profile dev: {said}{'' if suite.get('finished') else ' (cut)'}."
            yield from (f"- {test}" for test in suite.get("failures", {}))
            yield ""


def doctor(found: Stages) -> list[str]:
    """Lay out what ``kiv doctor`` found."""
    rows = [
        (row["name"], row["value"], "well" if row["well"] else "not well", f"{row['reason']} {row['remedy']}".strip())
        for row in found.get("doctor", {}).get("findings", [])
    ]
    return table(("check", "finding", "verdict", "reason and remedy"), rows)


def operations(found: Stages) -> list[str]:
    """Lay out by what stores compute."""
    asked = found.get("operations", {})
    rows = [
        (name, one["operations"], one["exact_attention"], *(1e3 * taken for taken in one["steps_s"]))
        for name, one in asked.get("stores", {}).items()
    ]
    verdict = [] if asked.get("well", True) else ["Not well: on a CUDA device Triton was to compute steps.", ""]
    return verdict + table(("store", "steps by", "exact calls by", "first step, ms", "second, ms"), rows)


def decode_columns() -> list[str]:
    """Name the columns of `decode_rows`."""
    predicted = ("kiv, predicted", "plain, predicted")
    return [
        "decode, ms",
        "context",
        *SUBJECTS,
        "kiv, kernel by kernel",
        "kiv ÷ plain",
        *predicted,
        "chunk, kiv",
        "chunk, plain",
        "chunk, predicted",
    ]


def decode_rows(found: Stages) -> Iterator[list[Cell]]:
    """Yield a line for each geometry and context: steps, and the chunk of a prompt at the end of that context."""
    for name, tokens in _measured(found, "step_ms"):
        by_kind = {kind: found.get(decode_name(name, tokens, kind), {}) for kind in SUBJECTS}
        kiv, plain = by_kind["kiv"], by_kind["plain"]
        ratio = kiv["step_ms"] / plain["step_ms"] if "step_ms" in kiv and "step_ms" in plain else None
        foretold = [one.get("predicted", {}).get("step_ms") for one in (kiv, plain)]
        chunks = kiv.get("prefill_chunk_ms"), plain.get("prefill_chunk_ms")
        steps = (one.get("step_ms") for one in by_kind.values())
        foretold_chunk = kiv.get("predicted", {}).get("prefill_chunk_ms")
        yield [name, short(tokens), *steps, kiv.get("launched_ms"), ratio, *foretold, *chunks, foretold_chunk]


def prefill_columns() -> list[str]:
    """Name the columns of `prefill_rows`."""
    return [
        "prefill, s",
        "tokens",
        *PREFILLS,
        "kiv ÷ the faster plain",
        "kiv, predicted",
        "kiv's peak on the device, MB",
    ]


def prefill_rows(found: Stages) -> Iterator[list[Cell]]:
    """Yield a line for each geometry and prompt."""
    for name, tokens in _measured(found, "prefill_s"):
        by_kind = {kind: found.get(prefill_name(name, tokens, kind), {}) for kind in PREFILLS}
        kiv = by_kind["kiv"]
        plain = [by_kind[kind]["prefill_s"] for kind in PLAIN_PREFILLS if "prefill_s" in by_kind[kind]]
        ratio = kiv["prefill_s"] / min(plain) if "prefill_s" in kiv and plain else None
        peak = kiv["peak_device_bytes"] / 1e6 if kiv.get("peak_device_bytes") else None
        taken = (one.get("prefill_s") for one in by_kind.values())
        yield [name, short(tokens), *taken, ratio, kiv.get("predicted", {}).get("prefill_s"), peak]


COUNTS = (
    "a step", "by", "launches", "waits", "copied, MB", "cold read, MB", "rows on the device", "device, MB",
    "device, predicted", "RAM, MB", "RAM, predicted",
)  # fmt: skip


def count_rows(found: Stages) -> Iterator[list[Cell]]:
    """Yield a line for each cache of which steps were measured: what profiler and pool count, and bytes held."""
    for name, result in found.items():
        if "step_ms" not in result:
            continue
        trace, foretold = result["trace"], result.get("predicted", {}).get("tiers", {})
        copied = sum(count for key, count in trace.items() if key.startswith("copied_bytes"))
        read = sum(result["read_a_step"].get(counter, 0) for counter in READS)
        beside = ", ".join(f"{counter} {show(count)}" for counter, count in row_cache(result).items()) or "-"
        tiers = (
            count / 1e6 if count is not None else None
            for tier in ("device", "ram")
            for count in (result["tiers"].get(tier, 0), foretold.get(tier))
        )
        yield [
            name, result.get("operations", "-"), trace["launches"], trace["waits"], copied / 1e6, read / 1e6, beside,
            *tiers,
        ]  # fmt: skip


def _measured(found: Stages, figure: str) -> list[tuple[str, int]]:
    """Return geometry and tokens of the stages that have a figure, each once, in order."""
    pairs = [name.split()[:2] for name, result in found.items() if figure in result]
    names = list(GEOMETRIES)
    return sorted({(name, int(tokens)) for name, tokens in pairs}, key=lambda pair: (names.index(pair[0]), pair[1]))
