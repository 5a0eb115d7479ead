"""How long Hypothesis searches."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, settings

NAMES = ("dev", "few", "ci", "nightly", "kill")
_COMMON: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def examples() -> int:
    """Return the number of examples of the profile."""
    assert settings.default is not None, "`load` has made one"
    return settings.default.max_examples


def load(name: str) -> None:
    """Make a profile the default. Test modules take shares of its examples: load it before they are imported."""
    settings.register_profile("dev", max_examples=5, **_COMMON)
    # The same examples in every run, so that a second run finds nothing new; as many as every mutant dies within.
    settings.register_profile("ci", max_examples=30, derandomize=True, database=None, print_blob=True, **_COMMON)
    # For what takes a second for a step, such as an interpreter.
    settings.register_profile("few", settings.get_profile("ci"), max_examples=3)
    # Others in every run. About an hour of one core for one implementation.
    settings.register_profile("nightly", max_examples=400, print_blob=True, **_COMMON)
    # For mutants: the first failure is enough, shrinking it would only cost time.
    quick = {"phases": (Phase.explicit, Phase.generate), "report_multiple_bugs": False}
    settings.register_profile("kill", max_examples=30, derandomize=True, database=None, **quick, **_COMMON)
    settings.load_profile(name)
