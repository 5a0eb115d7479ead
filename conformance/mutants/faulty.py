"""The kill run over kiv_fast and kiv_hf: the tests named by each fault, in copies of this process; one must fail.

`.ci/run` has the short form, ``nox -s mutants -- --target fast --short`` and the same for ``hf``: the text of every
fault is checked, and every fourth fault is run. A nightly run leaves ``--short`` out, and adds the reference's mutants.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .compiled import CompiledFault
    from .source import Fault

SHORT_SHARE = 4
"""The short form takes every fourth fault."""

MOST_PROCESSES = 4
"""As many run at a time as there are cores, up to this many."""

KILLED = pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERNAL_ERROR
"""A fault that writes where it must not may break pytest itself."""

HANG_S = 300
"""A test that takes longer counts as failed: a fault may be an endless loop."""

OPTIONS = f"-q -W ignore -p no:cacheprovider -p no:faulthandler --timeout={HANG_S} --assert=plain".split()
"""Nobody reads how two values differ, which takes minutes of two megabytes, most of all where CI is set."""


def quietly(arguments: Sequence[str]) -> tuple[int, str]:
    """Exit status of pytest, and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = pytest.main([*arguments, *OPTIONS])
    return int(status), printed.getvalue().strip()


def first_failed(tests: Sequence[str]) -> tuple[int, str]:
    """Exit status of pytest and the first test that failed, if one did."""
    status, printed = quietly([*tests, "-x", "--tb=no", "-rfE"])
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", printed, re.MULTILINE)
    return status, found[1] if found else printed[-300:]


@dataclass(frozen=True)
class Child:
    """A copy of this process that runs tests with a fault, and will write how they ended into a pipe."""

    pid: int
    pipe: int
    began: float


def start(fault: Fault | CompiledFault | None, tests: Sequence[str]) -> Child:
    """Run tests in a copy of this process, so that nothing that a fault breaks outlives it."""
    began = time.perf_counter()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        status, text = 99, ""
        try:
            with fault.applied() if fault is not None else contextlib.nullcontext():
                status, text = first_failed(tests)
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, f"{status}\n{text}".encode()[:4000])
        os._exit(0)
    os.close(writer)
    return Child(pid, reader, began)


def outcome(child: Child) -> tuple[int, str]:
    """Wait for the exit status of pytest and the first test that failed, if one did."""
    with os.fdopen(child.pipe, "rb") as pipe:
        status, _, text = pipe.read().decode(errors="replace").partition("\n")
    _, end = os.waitpid(child.pid, 0)
    if os.WIFSIGNALED(end):  # compiled code that crashes fails its test
        return int(pytest.ExitCode.TESTS_FAILED), signal.Signals(os.WTERMSIG(end)).name
    return (int(status) if status else 99), text


def outcomes(
    jobs: Sequence[tuple[Fault | CompiledFault | None, Sequence[str]]], processes: int
) -> Iterator[tuple[int, int, str, float]]:
    """Run several jobs at a time; yields their numbers as they end, with how they did and the seconds it took."""
    running: dict[int, tuple[Child, int]] = {}
    for number in range(len(jobs) + processes):
        if number >= processes and running:
            ready, _, _ = select.select(list(running), [], [])
            child, ended = running.pop(ready[0])
            status, text = outcome(child)
            yield ended, status, text, time.perf_counter() - child.began
        if number < len(jobs):
            child = start(*jobs[number])
            running[child.pipe] = child, number


def stale(faults: Sequence[Fault | CompiledFault]) -> list[str]:
    """Say why some of the faults can no longer be made: what they replace is gone, or was written twice."""
    found: list[str] = []
    for fault in faults:
        try:
            fault.check()
        except (LookupError, AttributeError, ImportError, SyntaxError, AssertionError) as error:
            found.append(f"{fault.name}: {type(error).__name__}: {error}")
    return found


def grouped(every: Iterable[tuple[str, ...]], parts: int = 1) -> list[list[str]]:
    """Return tests as arguments for pytest: those with the same options in a number of parts."""
    nodes: dict[tuple[str, ...], set[str]] = {}
    for tests in every:
        options = tuple(test for test in tests if test.startswith("-"))
        nodes.setdefault(options, set()).update(test for test in tests if not test.startswith("-"))
    some = [(sorted(tests)[part::parts], options) for options, tests in nodes.items() for part in range(parts)]
    return [[*tests, *options] for tests, options in some if tests]


def killers(fault: Fault | CompiledFault, status: int, failed: str) -> tuple[str, ...]:
    """Return the test that killed a mutant, with its options; all of its tests where pytest or the process crashed."""
    if status != pytest.ExitCode.TESTS_FAILED or "::" not in failed:
        return fault.tests
    return (failed, *(test for test in fault.tests if test.startswith("-")))


def kill_run(faults: Sequence[Fault | CompiledFault]) -> int:
    """Exit status 0 if one of every fault's tests fails with it, and all that did pass without."""
    began, alive, killing = time.perf_counter(), list[str](), list[tuple[str, ...]]()
    processes = min(os.cpu_count() or 1, MOST_PROCESSES)
    # Whatever the tests import is imported once, before the copies are made.
    collected = (quietly([*group, "--collect-only"]) for group in grouped(fault.tests for fault in faults))
    broken = [text for status, text in collected if status]
    if not broken:
        print(f"{'mutant':64} {'s':>5}  killed by")
        for number, status, text, seconds in outcomes([(fault, fault.tests) for fault in faults], processes):
            fault, killed = faults[number], status in KILLED
            if killed:
                killing.append(killers(fault, status, text))
            else:
                alive.append(fault.name)
            shown = text.rpartition("tests/")[2]
            print(f"{fault.name:64} {seconds:5.1f}  {'' if killed else 'SURVIVED '}{shown}", flush=True)
        print(f"\n{len(killing)} of {len(faults)} mutants killed in {time.perf_counter() - began:.0f} s")
        jobs = [(None, group) for group in grouped(killing, processes)]
        broken = [text for _, status, text, _ in outcomes(jobs, processes) if status]
        print(f"what killed them {'FAILS' if broken else 'passes'} on the unchanged code")
    for line in [*broken, *(f"survived: {name}" for name in alive)]:
        print(line)
    return 0 if not alive and not broken else 1


def run_faults(every: Sequence[Fault | CompiledFault], only: str = "", short: bool = False) -> int:
    """Do the kill run over the faults that have `only` in their names; refuse if the text of any is gone."""
    if gone := stale(every):
        print("faults whose text no longer applies: change them\n" + "\n".join(gone))
        return 1
    chosen = [fault for fault in every if only in fault.name]
    return kill_run(chosen[:: SHORT_SHARE if short else 1])
