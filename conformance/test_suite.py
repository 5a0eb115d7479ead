"""The suite itself: it can fail, and a failure tells all that is needed."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from .data import Recipe, Shape
from .driver import drive
from .failure import Mismatch
from .mutants import attention, estimate, index, report, retrieval, run, state, widening
from .mutants.patching import MUTANTS, Mutant
from .mutants.run import reference, without
from .strategies import KIVConfig, Scenario

ROOT = Path(__file__).parent.parent

LONG = Scenario(
    KIVConfig(hot_tokens=4, sink_tokens=2, page_tokens=4, candidate_tokens=12, retrieve_tokens=5),
    Shape(batch=2, heads=2, groups=2, width=8, value_width=3),
    Recipe("gaussian", 7),
    ((60, False), (1, True)),
)

EXACT = replace(
    LONG,
    config=replace(LONG.config, group="max"),
    recipe=Recipe("integers", 3),
    exact_population=True,
)


def named(name: str) -> Mutant:
    """Return the mutant of that name."""
    return next(m for m in MUTANTS if m.name == name)


def failure_of(name: str) -> Mismatch:
    """Return what the suite says of a mutant."""
    with named(name).applied(), pytest.raises(Mismatch) as raised:
        drive(reference(), LONG)
    return raised.value


def test_there_are_enough_mutants_and_each_undoes_itself() -> None:
    """At least 25 faults, of all chapters; what they replace is put back."""
    assert len({m.name for m in MUTANTS}) == len(MUTANTS) >= 25
    modules = attention, estimate, index, report, retrieval, state, widening
    names = {"attention", "estimate", "index", "report", "retrieval", "state", "widening"}
    assert {module.__name__.rpartition(".")[2] for module in modules} == names
    for one in MUTANTS:
        before = [owner.__dict__[attribute] for owner, attribute, _ in one.patches]
        with one.applied():
            changed = [owner.__dict__[attribute] for owner, attribute, _ in one.patches]
        after = [owner.__dict__[attribute] for owner, attribute, _ in one.patches]
        assert after == before, one.name
        assert changed != before, one.name


HIDING = """
import sys
sys.modules.update(dict.fromkeys(["transformers", "kiv_hf"]))
import pytest
sys.exit(pytest.main(["conformance", "--collect-only", "-p", "no:cacheprovider"]))
"""


def test_the_suite_collects_without_transformers() -> None:
    """Who checks an implementation of a store needs no model: those tests are left out, and the header says so."""
    run = subprocess.run([sys.executable, "-c", HIDING], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert "kiv: left out without kiv_hf and transformers: test_models.py, models/*, test_upstream.py" in run.stdout
    found = {path.name for path in (ROOT / "conformance").glob("test_*.py") if f"<Module {path.name}>" in run.stdout}
    assert found == {path.name for path in (ROOT / "conformance").glob("test_*.py")} - {
        "test_models.py",
        "test_upstream.py",
    }


def test_the_kill_run_uses_the_tests_of_the_suite() -> None:
    """Nearly every test of the chapters takes part."""
    assert len(run.tests()) > 80


@pytest.mark.parametrize(
    ("name", "clause"),
    [
        ("R - 1 tokens selected", "4.6"),
        ("C - 1 candidates", "4.4"),
        ("smallest tokens instead of largest", "4.6"),
        ("tail counted twice", "6.1"),
        ("wrong KV head", "4.4"),
        ("a page evicted too early", "2.2"),
        ("report: value bytes of all candidates", "9.6"),
        ("always widens", "4.9"),
    ],
)
def test_a_fault_is_named_by_its_clause(name: str, clause: str) -> None:
    """The clause that a failure names is one that the fault breaks."""
    assert failure_of(name).clause == clause


def test_a_failure_can_be_read_and_repeated() -> None:
    """Clause, implementation, tiers, place, scores and margin, operations, and a snippet that runs when pasted."""
    text = str(failure_of("smallest tokens instead of largest"))
    parts = [
        r"^SPEC 4\.6: ",
        r"implementation: reference",
        r"first difference: layer 0, block 0, sequence 0, kv_head 0",
        r"n th best score: ",
        r"rejected: \d+ with score ",
        r"beyond the margin by: ",
        r"tier layout: TierTokens\(sinks=2, ",
        r"operations:\n +a\.append\(key=float32\[2, 2, 60, 8\], ",
        r"to reproduce:\n",
    ]
    for part in parts:
        assert re.search(part, text), part
    exec_right(snippet_of(failure_of("smallest tokens instead of largest")))


def snippet_of(failure: Mismatch) -> str:
    """Return what can be pasted."""
    return "\n".join(line[2:] for line in str(failure).partition("to reproduce:\n")[2].splitlines())


def exec_right(snippet: str) -> None:
    """Run a snippet, of which a correct implementation passes the last assertion."""
    assert snippet.splitlines()[-1].startswith("assert ")
    exec(compile(snippet, "snippet", "exec"), {})


@pytest.mark.parametrize(
    "name",
    [
        "R - 1 tokens selected",
        "C - 1 candidates",
        "smallest tokens instead of largest",
        "tail counted twice",
        "wrong KV head",
        "a page evicted too early",
        "report: value bytes of all candidates",
        "values rounded to bfloat16",
        "always widens",
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_a_snippet_fails_where_the_fault_is_and_passes_where_it_is_not(name: str, exact: bool) -> None:
    """It ends in an assertion, which tells the right value."""
    with named(name).applied():
        with pytest.raises(Mismatch) as raised:
            drive(reference(), EXACT if exact else LONG)
        snippet = snippet_of(raised.value)
        with pytest.raises(AssertionError, match=f"^SPEC {raised.value.clause}: ".replace(".", r"\.")):
            exec(compile(snippet, "snippet", "exec"), {})
    exec_right(snippet)


@pytest.mark.parametrize(("name", "field"), [("R - 1 tokens selected", "4.6"), ("C - 1 candidates", "4.4")])
def test_an_exact_mismatch_tells_both_scores_and_the_tie_rule(name: str, field: str) -> None:
    """In the exact population there is no margin: what was chosen, what should be, and how ties are broken."""
    with named(name).applied(), pytest.raises(Mismatch) as raised:
        drive(reference(), EXACT)
    text = str(raised.value)
    assert raised.value.clause == field
    assert re.search(r"^chosen: (none|\d+ with score -?\d+\.\d+)$", text, re.MULTILINE)
    assert re.search(r"^should be: \d+ with score -?\d+\.\d+$", text, re.MULTILINE)
    assert "tie rule: of equal scores the lower index is the better one (SPEC 1.3)" in text


def test_without_an_assertion_its_mutant_lives() -> None:
    """Deleting one assertion from `checks` lets a mutant live; with it, the mutant dies."""
    name = "report: value bytes of all candidates"
    assert failure_of(name).clause == "9.6"
    with named(name).applied(), without("wrong bytes of cold keys and values"):
        drive(reference(), LONG)
