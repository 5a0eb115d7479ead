"""The whole King James text through Gemma 3 270M with ``prefill="retrieve"``, then 64 tokens decoded, in one run.

Every chunk is logged to ``<out>/book.log.jsonl`` as it ends, and the result is written anew every few minutes, so that
a run that is killed leaves what it measured; ``--from-log`` makes the result of such a log.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from .machine import header, process_bytes
from .models import kjv_tokens, load_tokenizer
from .options import config, parse, parser
from .report import Result
from .subjects import Factory, Subject, chunks
from .timing import median_ms

WRITE_EVERY_S = 120.0
TABLE_ROWS = 16


class Log:
    """Records, one JSON line each, on disk as soon as they are added."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")
        self.records: list[dict[str, Any]] = []

    def add(self, **record: Any) -> None:
        """Add a record."""
        self.records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def prefill(subject: Subject, ids: torch.Tensor, log: Log, options: argparse.Namespace) -> torch.Tensor:
    """Feed `ids` [1, T] chunk by chunk; returns the logits of the last token."""
    start, done, written = time.perf_counter(), 0, time.perf_counter()
    logits = torch.empty(0)
    with tqdm(total=ids.shape[1], unit="token", desc="prefill", smoothing=0.05) as bar:
        for part in chunks(ids, options.chunk):
            before = time.perf_counter()
            logits = subject.step(part)
            now = time.perf_counter()
            done += part.shape[1]
            memory, tokens, process = subject.cache.memory(), subject.cache.tokens(), process_bytes()
            log.add(
                kind="chunk",
                position=done,
                tokens=part.shape[1],
                chunk_s=now - before,
                elapsed_s=now - start,
                bytes=memory._asdict(),
                parts=tokens._asdict(),
                process=process._asdict(),
            )
            bar.update(part.shape[1])
            if now - written > WRITE_EVERY_S:
                written = now
                finish(log.records, options)
    return logits


def decode(subject: Subject, logits: torch.Tensor, count: int, log: Log, model_name: str) -> None:
    """Decode `count` tokens greedily."""
    tokenizer = load_tokenizer(model_name)
    for _ in range(count):
        token = int(logits.argmax())
        before = time.perf_counter()
        logits = subject.step(torch.tensor([[token]]))
        taken = time.perf_counter() - before
        masses = [report.blocks[0].exact_mass.mean().item() for report in subject.cache.reports().values()]
        log.add(kind="decode", token=token, text=tokenizer.decode([token]), step_s=taken, exact_mass=masses)
    log.add(kind="end", process=process_bytes()._asdict(), bytes=subject.cache.memory()._asdict())


def finish(records: list[dict[str, Any]], options: argparse.Namespace) -> Result:
    """Make the result of the records so far and write it."""
    head = next((record["head"] for record in records if record["kind"] == "start"), header())
    settings = next((record["settings"] for record in records if record["kind"] == "start"), {})
    result = Result("book", "The whole King James text through Gemma 3 270M, prefill by retrieval", settings, head)
    parts = [record for record in records if record["kind"] == "chunk"]
    steps = [record for record in records if record["kind"] == "decode"]
    ended = any(record["kind"] == "end" for record in records)
    table = result.table(
        "Prefill by position",
        *("position", "elapsed, s", "tokens/s here", "tokens/s so far", "device, MB", "RAM, MB", "disk, MB"),
        *("process, MB", "peak process, MB"),
    )
    previous = {"position": 0, "elapsed_s": 0.0}
    for record in _marks(parts):
        span = record["position"] - previous["position"], record["elapsed_s"] - previous["elapsed_s"]
        table.add(
            *(record["position"], record["elapsed_s"], span[0] / span[1], record["position"] / record["elapsed_s"]),
            *(record["bytes"][tier] / 1e6 for tier in ("device", "ram", "disk")),
            *(record["process"][name] / 1e6 for name in ("rss", "peak")),
        )
        previous = record
    if ended:
        times = [step["step_s"] for step in steps]
        text = "".join(step["text"] for step in steps)
        mass = sum(sum(step["exact_mass"]) / len(step["exact_mass"]) for step in steps) / len(steps)
        tokens = parts[-1]["parts"]
        result.notes.append(
            f"{parts[-1]['position']:,} tokens in {parts[-1]['elapsed_s']:,.0f} s; then {len(steps)} tokens decoded, "
            f"{median_ms(times):.0f} ms each (median; the first {1e3 * times[0]:.0f}, the slowest "
            f"{1e3 * max(times):.0f}). Share of attention mass held exactly: {mass:.3f}. Tokens by part, each layer, "
            f"after the prefill: {tokens}. Decoded text: {text!r}."
        )
    else:
        result.notes.append("The run has not ended: these are its records so far.")
    result.series = {"records": records}
    result.write(options.out, lambda figure: draw(figure, result))
    return result


def _marks(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most `TABLE_ROWS` chunks, evenly spaced, the last one among them."""
    stride = max(1, -(-len(parts) // TABLE_ROWS))
    return parts[::-1][::stride][::-1]


def draw(figure: Figure, result: Result) -> None:
    """Speed of each chunk, and memory by tier, against position."""
    parts = [record for record in result.series["records"] if record["kind"] == "chunk"]
    speed, memory = figure.subplots(1, 2)
    at = [part["position"] for part in parts]
    speed.plot(at, [part["tokens"] / part["chunk_s"] for part in parts], ".-")
    speed.set(xlabel="position, tokens", ylabel="tokens/s", title="Prefill by retrieval", ylim=(0, None))
    for tier in ("device", "ram", "disk"):
        memory.plot(at, [part["bytes"][tier] / 1e6 for part in parts], label=f"cache, {tier}")
    memory.plot(at, [part["process"]["rss"] / 1e6 for part in parts], "k--", label="process")
    memory.set(xlabel="position, tokens", ylabel="MB", title="Memory")
    memory.legend()
    for panel in (speed, memory):
        panel.grid(alpha=0.3)


def main(argv: list[str] | None = None) -> Result:
    """Run the benchmark."""
    made = parser("book", __doc__)
    made.add_argument("--tokens", type=int, help="read only the beginning of the text")
    made.add_argument("--decode", type=int, default=64, help="tokens to decode")
    made.add_argument("--chunk", type=int, default=1024, help="tokens of a chunk")
    made.add_argument("--block", type=int, default=64, help="tokens that share a selection (query_block_tokens)")
    made.add_argument("--ram-mib", type=int, help="ram_bytes in MiB (default: no limit)")
    made.add_argument("--spill-dir", help="folder of the disk tier (default: the system's)")
    made.add_argument("--from-log", type=Path, help="run nothing: make the result of this log")
    options = parse(made, argv)
    if options.from_log is not None:
        lines = options.from_log.read_text(encoding="utf-8").splitlines()
        result = finish([json.loads(line) for line in lines], options)
        print(result.markdown())
        return result
    if options.quick:
        options.tokens, options.chunk, options.decode = 1024, 256, 4
    log = Log(options.out / "book.log.jsonl")
    ram_bytes = None if options.ram_mib is None else options.ram_mib * 2**20
    factory = Factory("gemma", options.impl)
    ids = kjv_tokens("gemma", options.tokens)
    # The end of every call is attended exactly (SPEC 7.4), in case it is a question: in a book it is not.
    retrieving = config(
        options,
        prefill="retrieve",
        query_block_tokens=options.block,
        exact_suffix_tokens=0,
        ram_bytes=ram_bytes,
        spill_dir=options.spill_dir,
    )
    settings = {"impl": options.impl, "tokens": ids.shape[1], "chunk": options.chunk, "block": options.block}
    settings |= {"exact suffix": 0, "ram MiB": options.ram_mib}
    log.add(kind="start", head=header(), settings=settings)
    subject = factory.kiv("KIV", retrieving)
    logits = prefill(subject, ids, log, options)
    decode(subject, logits, options.decode, log, "gemma")
    subject.close()
    result = finish(log.records, options)
    print(result.markdown())
    return result


if __name__ == "__main__":
    main()
