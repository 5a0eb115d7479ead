"""Faults of `kiv_fast` and `kiv_hf`, and the run that kills them: each dies of a test that passes without it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .mutants import fast, faulty, hf
from .mutants.kernels import KernelFault
from .mutants.source import Fault

ROOT = Path(__file__).parent.parent


def test_faults_of_fast_and_of_the_binding_can_be_made() -> None:
    """At least 60, each by a name of its own; what they replace is there, and is put back."""
    pytest.importorskip("kiv_hf.cache.kiv_cache")
    every = [*fast.FAULTS, *hf.FAULTS]
    assert len({fault.name for fault in every}) == len(every) >= 60
    functions = [fault.function() for fault in every if type(fault) is Fault]
    before = [function.__code__ for function in functions]
    assert faulty.stale(every) == []
    assert [function.__code__ for function in functions] == before


def test_a_fault_of_a_kernel_is_made_and_put_back() -> None:
    """The interpreter runs another text for as long."""
    for fault in fast.FAULTS:
        if isinstance(fault, KernelFault):
            kernel = fault.thing()
            right = kernel.rewrite()
            with fault.applied():
                assert kernel.rewrite() is not right
            assert kernel.rewrite().__code__ == right.__code__


def test_the_tests_that_faults_name_are_there() -> None:
    """Files, and functions or classes in them."""
    for fault in (*fast.FAULTS, *hf.FAULTS):
        for path, _, name in (test.partition("::") for test in fault.tests if not test.startswith("-")):
            text = (ROOT / path).read_text(encoding="utf-8")
            for part in re.sub(r"\[.*", "", name).split("::") if name else ():
                assert re.search(rf"^ *(?:def|class) {part}\b", text, re.MULTILINE), f"{fault.name}: {path}::{name}"


@pytest.mark.parametrize(
    ("where", "old", "new"),
    [
        ("kiv_reference.admissible:violation", "if the text is gone:", "pass"),
        ("kiv_reference.admissible:violation", "errors", "written more than once"),
        ("kiv_reference.admissible:gone", "if", "pass"),
        ("kiv_reference.gone:gone", "if", "pass"),
        ("kiv_reference.admissible:violation", "return None", "return ("),
    ],
)
def test_a_fault_whose_text_is_gone_is_an_error(
    where: str, old: str, new: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no mutant that was killed, in the short form too, where its turn may not come."""
    good = Fault("good", "kiv_reference.admissible:violation", "inside = set(chosen)", "inside = set()", ())
    assert faulty.run_faults([good, Fault("no longer", where, old, new, ())], short=True) == 1
    assert "no longer: " in capsys.readouterr().out


KILLING = """
import sys
from conformance.mutants.faulty import kill_run
from conformance.mutants.source import Fault
where, old = "kiv_reference.admissible:violation", "inside = set(chosen)"
news = {"deadly": "inside = set()", "harmless": "inside = set(list(chosen))"}
sys.exit(kill_run([Fault(name, where, old, news[name], (test,)) for name, test in zip(sys.argv[1::2], sys.argv[2::2])]))
"""

TESTED = """
from kiv_reference.admissible import violation

def test_a_choice():
    assert violation([2.0, 1.0], [0.0, 0.0], [1]) is not None

def test_that_never_passes():
    assert False

def test_that_ends_pytest():
    pass
"""

HOOKED = """
from test_it import test_a_choice

def pytest_runtest_logstart(nodeid):
    if "ends_pytest" in nodeid:
        test_a_choice()
"""


@pytest.mark.parametrize(
    ("name", "test", "status", "said"),
    [
        ("deadly", "test_a_choice", 0, "what killed them passes on the unchanged code"),
        ("deadly", "test_that_ends_pytest", 0, "what killed them passes on the unchanged code"),
        ("harmless", "test_a_choice", 1, "survived: harmless"),
        ("deadly", "test_that_never_passes", 1, "what killed them FAILS on the unchanged code"),
    ],
)
def test_a_kill_needs_a_test_that_passes_otherwise(
    tmp_path: Path, name: str, test: str, status: int, said: str
) -> None:
    """Else whatever keeps tests from running would kill every mutant."""
    (tmp_path / "test_it.py").write_text(TESTED)
    (tmp_path / "conftest.py").write_text(HOOKED)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-c", KILLING, name, f"test_it.py::{test}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == status, run.stdout[-2000:] + run.stderr[-2000:]
    assert said in run.stdout
