"""How the stages of a run on a GPU share the time: what is left, what breaks, and what a second run does."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import gpu, gpu_needs, gpu_sizes
from benchmarks.gpu_journal import Cut, Journal
from benchmarks.gpu_stages import Stage

if TYPE_CHECKING:
    from pathlib import Path


class Clock:
    """A clock that stages move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.began: list[str] = []
        monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: self.now))

    def stage(self, name: str, most_s: float | None, takes_s: float, result: dict[str, Any] | None = None) -> Stage:
        def run(end: float) -> dict[str, Any]:
            self.began.append(name)
            self.now += min(takes_s, end - self.now)
            if takes_s > (most_s or takes_s):
                raise Cut
            return result or {"well": True}

        return Stage(name, run, lambda: most_s)


def test_what_would_not_fit_is_left_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, journal = Clock(monkeypatch), Journal(tmp_path, {"card": "A"})
    listed = [clock.stage("short", 30, 20), clock.stage("long", 50, 40), clock.stage("last", 30, 30)]
    listed += [clock.stage("rest", None, 5)]
    assert gpu.perform(listed, journal, 60) == gpu.AGAIN
    assert clock.began == ["short", "last", "rest"]  # 40 s are left for "long"
    said = capsys.readouterr()
    assert "Left for another run of the same command: long." in said.out
    assert said.err.splitlines() == [
        "short: at most 30 s, of 60", "last: at most 30 s, of 40", "rest: at most 10 s, of 10"
    ]  # fmt: skip
    assert gpu.perform(listed, Journal(tmp_path, {"card": "A"}), 60) == 0
    assert clock.began[3:] == ["long"]


def test_what_breaks_is_a_result_and_tried_again_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, journal = Clock(monkeypatch), Journal(tmp_path, {"card": "A"})

    def broken(end: float) -> dict[str, Any]:
        clock.began.append("broken")
        warnings.warn("memory is not pinned", RuntimeWarning, stacklevel=1)
        raise RuntimeError("no such kernel")

    listed = [clock.stage("slow", 10, 11), Stage("broken", broken, lambda: 10), clock.stage("good", 10, 1)]
    listed += [clock.stage("late", 100, 90)]
    assert gpu.perform(listed, journal, 60) == gpu.AGAIN
    assert journal.found("slow")["error"] == "not over after 10 s, the most that it gets"
    assert journal.found("broken")["error"] == "RuntimeError: no such kernel"
    assert "- broken: memory is not pinned" in capsys.readouterr().out
    assert gpu.perform(listed, journal, 150) == 1
    assert clock.began == ["slow", "broken", "good", "late", "slow", "broken"]


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ({"well": True}, 0),
        ({"well": False}, 1),
        ({"failed": 2}, 1),
        ({"did not fit": "x"}, 0),
        ({"finished": False}, 75),
    ],
)
def test_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: dict[str, Any], code: int) -> None:
    listed = [Clock(monkeypatch).stage("one", 10, 1, result)]
    assert gpu.perform(listed, Journal(tmp_path, {"card": "A"}), 60) == code


@pytest.mark.parametrize("result", [{"error": "RuntimeError: no"}, {"finished": False}])
def test_what_broke_or_was_cut_is_tried_again(tmp_path: Path, result: dict[str, bool] | dict[str, str]) -> None:
    journal = Journal(tmp_path, {"card": "A"})
    journal.write("x", result)
    journal.write("y", {"did not fit": "out of memory"})
    again = Journal(tmp_path, {"card": "A"})
    assert not again.done("x")
    assert again.done("y")
    assert not again.done("z")


def test_results_of_two_cards_are_not_mixed(tmp_path: Path) -> None:
    Journal(tmp_path, {"card": "A"}).write("x", {"left out": "no room"})
    with pytest.raises(SystemExit, match="name another --out"):
        Journal(tmp_path, {"card": "B"})


def test_a_prompt_gets_half_more_time_than_its_last_chunks_would_take() -> None:
    sizes = gpu_sizes.Sizes()
    known = {"llama 131072 plain": {"prefill_chunk_ms": 500.0}}
    most = [gpu_needs.prefill_s("llama", 131072, kind, known, sizes) for kind in gpu_sizes.PREFILLS]
    measured = sizes.start_s + 128 * 0.75
    assert most == [gpu_needs.PREFILL_S, measured, measured, gpu_needs.PREFILL_S]
