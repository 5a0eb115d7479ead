"""Every clause of SPEC.md has a test class, in the module of its chapter, that says the clause in one sentence."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

HERE = Path(__file__).parent
CLAUSE = re.compile(r"^\*\*(\d+)\.(\d+) ", re.MULTILINE)
CLASS = re.compile(r"^Test_(\d+)_(\d+)_\w+$")


def clauses() -> set[tuple[int, int]]:
    """Return the clauses of SPEC.md."""
    return {(int(a), int(b)) for a, b in CLAUSE.findall((HERE.parent / "SPEC.md").read_text())}


def classes() -> dict[tuple[int, int], type]:
    """Return the test classes of the chapters' modules, by clause."""
    found: dict[tuple[int, int], type] = {}
    for path in sorted(HERE.glob("test_ch*.py")):
        module = importlib.import_module(f"{__package__}.{path.stem}")
        for name, cls in inspect.getmembers(module, inspect.isclass):
            match = CLASS.match(name)
            if match and cls.__module__ == module.__name__:
                clause = int(match[1]), int(match[2])
                assert path.stem.startswith(f"test_ch{clause[0]:02d}_"), f"{name} belongs into another chapter's module"
                assert clause not in found, f"two classes for SPEC {clause[0]}.{clause[1]}"
                found[clause] = cls
    return found


def test_every_clause_has_a_class_and_every_class_a_clause() -> None:
    """No clause without tests, no tests of a clause that is gone."""
    known = clauses()
    assert len(known) >= 40, "SPEC.md was not parsed"
    missing = sorted(known - set(classes()))
    assert not missing, "clauses without a test class: " + ", ".join(f"{a}.{b}" for a, b in missing)
    stale = sorted(set(classes()) - known)
    assert not stale, "test classes without a clause: " + ", ".join(f"{a}.{b}" for a, b in stale)


def test_every_class_says_its_clause_in_one_sentence_and_tests_it() -> None:
    """Docstring: one sentence. Body: at least one test."""
    for (chapter, clause), cls in classes().items():
        text = inspect.cleandoc(cls.__doc__ or "")
        assert text, f"{cls.__name__} has no docstring"
        assert text.endswith("."), f"{cls.__name__}: one sentence, please"
        assert "\n\n" not in text, f"{cls.__name__}: one sentence, please"
        tests = [name for name in vars(cls) if name.startswith("test_")]
        assert tests, f"SPEC {chapter}.{clause} has a class without a test"
