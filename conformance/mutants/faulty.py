"""The kill run over kiv_fast and kiv_hf: the tests named by each fault, in this process, one of which must fail."""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
from collections.abc import Sequence

import pytest

from .source import Fault

SHORT_SHARE = 3
"""The short form takes every third fault."""


def first_failed(tests: Sequence[str]) -> tuple[int, str]:
    """Exit status of pytest and the first test that failed, if one did."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = pytest.main([*tests, "-x", "-q", "--tb=no", "-rfE", "-p", "no:cacheprovider", "-p", "no:randomly"])
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", printed.getvalue(), re.MULTILINE)
    return int(status), found[1].rpartition("/")[2] if found else printed.getvalue()[-300:]


def in_child(fault: Fault | None, tests: Sequence[str]) -> tuple[int, str]:
    """The same in a copy of this process, so that nothing that a fault breaks outlives it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
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
    with os.fdopen(reader, "rb") as pipe:
        status, _, text = pipe.read().decode(errors="replace").partition("\n")
    os.waitpid(child, 0)
    return (int(status) if status else 99), text


def kill_run(faults: Sequence[Fault], control: bool = True) -> int:
    """Exit status 0 if every fault's tests pass without it and one of them fails with it."""
    start, alive = time.perf_counter(), []
    if control:
        status, text = in_child(None, sorted({test for fault in faults for test in fault.tests}))
        print("the unchanged code", "lives" if status == 0 else f"FAILS: {text}", flush=True)
        if status != 0:
            return 1
    print(f"{'mutant':52} {'s':>5}  killed by")
    for fault in faults:
        began = time.perf_counter()
        status, text = in_child(fault, fault.tests)
        killed = status == pytest.ExitCode.TESTS_FAILED
        if not killed:
            alive.append(fault.name)
        print(f"{fault.name:52} {time.perf_counter() - began:5.1f}  {'' if killed else 'SURVIVED '}{text}", flush=True)
    killed_all = len(faults) - len(alive)
    print(f"\n{killed_all} of {len(faults)} mutants killed in {time.perf_counter() - start:.0f} s")
    return 0 if not alive else 1
