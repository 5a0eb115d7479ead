"""Saved contexts: what it takes to save one, and to have the first token after loading it, beside `torch.save`.

Gemma 3 270M, a KIVCache and a plain DynamicCache of the same length. Each load is followed by the forward pass of one
token. "Cold" is with no byte of the files in the system's memory, as after a restart.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from kiv_hf import KIVCache

from .fill import fill, measure_spreads
from .models import kjv_tokens
from .options import parse, parser
from .report import Result, short, token_axis
from .subjects import Factory, Subject
from .timing import quiet, seconds

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from matplotlib.figure import Figure

K = 1024
READY_LIMIT_S = 2.0
COLUMNS = (
    "",
    "tokens",
    "bytes, MB",
    "save, s",
    "load, s",
    "first token after it, s",
    "load cold, s",
    "and first token, s",
)


def drop(folder: Path) -> None:
    """Have the system forget what it keeps of the files of a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def rounds(
    folder: Path,
    save: Callable[[], object],
    load: Callable[[], Subject],
    token: torch.Tensor,
    count: int,
) -> tuple[list[float], torch.Tensor]:
    """Save and load a few times: medians of the seconds, warm and cold, and the last logits."""
    taken: list[list[float]] = [[] for _ in range(5)]
    logits = token
    for _ in range(count):
        shutil.rmtree(folder, ignore_errors=True)
        taken[0].append(seconds(save))
        for cold in (False, True):
            if cold:
                drop(folder)
            made: list[Subject] = []
            taken[1 + 2 * cold].append(seconds(lambda made=made: made.append(load())))
            answers: list[torch.Tensor] = []
            step: Callable[[], object] = lambda made=made, answers=answers: answers.append(made[0].step(token))  # noqa: E731
            taken[2 + 2 * cold].append(seconds(step))
            logits = answers[0]
            made[0].close()
    return [median(times) for times in taken], logits


def measure(options: argparse.Namespace, result: Result) -> None:
    """Run all sizes."""
    factory = Factory("gemma", options.impl)
    ids = kjv_tokens("gemma", 4 * K)
    spreads, token = measure_spreads(factory.model, ids[:, :512]), ids[:, 600:601]
    table = result.table("Save, load, first token: medians", *COLUMNS)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="kiv-bench-") as place, quiet():
        for tokens in options.sizes:
            for name in ("KIV", "DynamicCache, torch.save"):
                folder = Path(place) / "context"
                subject = factory.kiv(name) if name == "KIV" else factory.plain(name)
                fill(subject, spreads, ids, tokens, options.seed)
                subject.step(ids[:, 599:600])
                save, load = _kiv(subject, folder) if name == "KIV" else _plain(subject, folder)
                taken, logits = rounds(folder, save, load, token, options.rounds)
                if not torch.equal(logits, subject.step(token)):
                    raise AssertionError(f"{name}: the first logits after a load are not those without it")
                nbytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                table.add(name, tokens, nbytes / 1e6, *taken)
                if name == "KIV":
                    for kind, at in (("", 1), (", cold", 3)):
                        ready = taken[at] + taken[at + 1]
                        result.target(f"{short(tokens)}: ready with the first token{kind}", READY_LIMIT_S, ready, "s")
                subject.close()
    result.notes.append(
        f"Medians of {options.rounds}. Logits of the first token are bit-identical with those of the cache that was "
        "saved, in every round. KIV's bytes hold the index and checksums beside keys and values."
    )


def _kiv(subject: Subject, folder: Path) -> tuple[Callable[[], object], Callable[[], Subject]]:
    def load() -> Subject:
        return Subject("loaded", subject.model, KIVCache.load(folder, subject.model))

    return lambda: subject.cache.save(folder), load


def _plain(subject: Subject, folder: Path) -> tuple[Callable[[], object], Callable[[], Subject]]:
    def save() -> None:
        folder.mkdir()
        torch.save(subject.cache, folder / "cache.pt")
        handle = os.open(folder / "cache.pt", os.O_RDONLY)
        os.fsync(handle)  # as KIV does
        os.close(handle)

    def load() -> Subject:
        cache: Any = torch.load(folder / "cache.pt", weights_only=False)
        return Subject("loaded", subject.model, cache)

    return save, load


def draw(figure: Figure, result: Result) -> None:
    """Draw the seconds until the first token is there."""
    panel = figure.subplots()
    rows: list[Any] = list(result.tables[0].rows)
    for name in dict.fromkeys(row[0] for row in rows):
        mine = [row for row in rows if row[0] == name]
        for kind, at in (("warm", 4), ("cold", 6)):
            panel.plot([row[1] for row in mine], [row[at] + row[at + 1] for row in mine], ".-", label=f"{name}, {kind}")
    panel.set(yscale="log", ylabel="s", title="Load and first token")
    token_axis(panel, [row[1] for row in rows if row[0] == "KIV"])


def main(argv: list[str] | None = None) -> Result:
    """Run the benchmark."""
    made = parser("contexts", __doc__)
    made.add_argument("--sizes", type=int, nargs="+", default=[6 * K, 128 * K, 1024 * K], help="tokens")
    made.add_argument("--rounds", type=int, default=3, help="how often each is saved and loaded")
    made.add_argument(
        "--folder", help="where the contexts are saved (default: the system's folder for temporary files)"
    )
    options = parse(made, argv)
    if options.quick:
        options.sizes, options.rounds = [1 * K, 2 * K], 1
    result = Result("contexts", "Saving and loading a context", {"impl": options.impl, "rounds": options.rounds})
    measure(options, result)
    result.write(options.out, draw)
    print(result.markdown())
    return result
