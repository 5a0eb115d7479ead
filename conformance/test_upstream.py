"""The harness of `nox -s upstream` in a short form: right classes pass, and what is wrong is seen."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kiv_fast.store import FastStore

from .upstream import shadow
from .upstream.__main__ import main, table
from .upstream.expected import CLASSES, REFUSALS, SHORT
from .upstream.shadow import Row, run_class
from .upstream.shapes import SHAPES

if TYPE_CHECKING:
    from collections.abc import Iterator

FEW = {name: SHAPES[name] for name in ("greedy", "continued", "right padding")}


@pytest.mark.parametrize("name", SHORT)
def test_a_class_gives_what_it_gives_with_the_stock_cache(name: str) -> None:
    """A class of each family, or a refusal that is listed."""
    row = run_class(name)
    assert not row.wrong
    assert row.equal == row.compared


def test_a_fault_in_the_scores_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred-millionth, in one call of `attend`: the tokens stay the same."""
    attend = FastStore.attend
    monkeypatch.setattr(FastStore, "attend", lambda self, query, **kwargs: attend(self, query, **kwargs) * (1 + 1e-8))
    row = run_class("LlamaForCausalLM", FEW)
    assert row.equal == 0
    assert "greedy, call 1: scores off by" in row.wrong[0]


def test_other_tokens_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As right padding gave them once."""
    attend = FastStore.attend
    monkeypatch.setattr(FastStore, "attend", lambda self, query, **kwargs: -9 * attend(self, query, **kwargs))
    assert any("sequences" in what for what in run_class("LlamaForCausalLM", FEW).wrong)


def test_a_comparison_without_kiv_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache that `generate` makes stays the stock one: all is equal, and shows nothing."""
    monkeypatch.setattr(shadow, "put_kiv", lambda model: [])
    assert run_class("LlamaForCausalLM", FEW).wrong == ["no token was cold: the comparison shows nothing"]


@pytest.mark.parametrize(("listed", "wrong"), [({}, "greedy: refused: KIV"), ({"continued": "why"}, "continued: not")])
def test_refusals_are_those_that_are_listed(
    monkeypatch: pytest.MonkeyPatch, listed: dict[str, str], wrong: str
) -> None:
    """One that is not listed is wrong, and one that is listed and does not come as well."""
    if listed:
        monkeypatch.setitem(REFUSALS, "LlamaForCausalLM", listed)
    else:
        monkeypatch.delitem(REFUSALS, "T5ForConditionalGeneration")
    row = run_class("LlamaForCausalLM" if listed else "T5ForConditionalGeneration", FEW)
    assert row.wrong[0].startswith(wrong)


def test_the_command_fails_if_a_class_is_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its table has a line for each class, one that breaks too."""

    def run(name: str, shapes: Any = None) -> Row:
        if name == "Broken":
            raise RuntimeError("no such class")
        return Row(name, compared=3, equal=3 if name == "Right" else 2, wrong=[] if name == "Right" else ["greedy"])

    monkeypatch.setattr("conformance.upstream.__main__.run_class", run)
    assert main(["Right"]) == 0
    assert main(["Right", "Wrong"]) == 1
    assert main(["Broken"]) == 1
    printed = capsys.readouterr().out
    assert "WRONG Wrong: greedy" in printed
    assert "could not be run: RuntimeError: no such class" in printed


def test_the_table_adds_up() -> None:
    """Sums of the columns, and the reasons of refusals."""
    lines = table([Row("A", 3, 3), Row("B", 4, 4, refused=1, reasons=Counter({"refused: why": 1}))]).splitlines()
    assert lines[3].split() == ["2", "classes", "7", "7", "1", "0", "ok"]
    assert lines[4] == "B: 1 refused: why"


def test_there_are_twenty_classes() -> None:
    """All in transformers, and every refusal is of one of them."""
    assert len(set(CLASSES)) >= 20
    assert {*REFUSALS, *SHORT} <= set(CLASSES)
    assert {shape for listed in REFUSALS.values() for shape in listed} <= set(SHAPES)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
