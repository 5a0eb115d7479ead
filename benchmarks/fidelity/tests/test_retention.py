"""Retention of the long regime: its documents, its plan, what it counts, and a small run on a tiny model."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from matplotlib.figure import Figure

from benchmarks.fidelity import contexts
from benchmarks.fidelity.contexts import FULL
from benchmarks.fidelity.journal import Journal
from benchmarks.fidelity.long import documents, retention, retention_part
from benchmarks.fidelity.long.documents import LongDocument
from benchmarks.fidelity.long.retention import Outcome, at_share, outcomes, share_name
from benchmarks.fidelity.long.retention_part import (
    LEAST_ANSWERED,
    LOST,
    SERIES,
    SHARES,
    Series,
    kept,
    lost,
    planned,
    widened,
)
from benchmarks.fidelity.tasks import Question, fitted
from benchmarks.fidelity.tests.tiny import tiny_llama

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import LlamaForCausalLM

TOKENS = 1900
"""Of the tiny model's document: 512 of them are cold."""


class Letters:
    """A tokenizer that makes a token of each character."""

    def __call__(self, text: str, return_tensors: str | None = None, add_special_tokens: bool = True) -> Any:
        ids = [ord(letter) % 97 for letter in text]
        return argparse.Namespace(input_ids=torch.tensor([ids]) if return_tensors else ids)

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + i % 26) for i in ids)


@pytest.fixture(name="lines")
def _lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The text, a tokenizer that counts its letters, and no download."""
    lines = [f"And it came to pass in line {i:05}." for i in range(1000)]
    monkeypatch.setattr(documents, "kjv_text", lambda: "\n".join(lines))
    monkeypatch.setattr(documents, "load_tokenizer", lambda model: Letters())
    return lines


def test_the_first_document_is_what_it_was_before_there_were_others(lines: list[str]) -> None:
    first = LongDocument("smollm2", "kjv", 8000)
    assert first == LongDocument("smollm2", "kjv", 8000, 0)
    assert first.name == "smollm2-kjv-8000"
    assert first.content == fitted(lines[: 8000 // 4], first.quiz, 8000, len)
    assert first.quiz.questions[0] == Question(
        "needle", "On his seventh birthday Daniel was given a wooden", "elephant", 0.05
    )


def test_documents_alike_have_other_facts_in_other_stretches_of_the_text(lines: list[str]) -> None:
    alike = [LongDocument("smollm2", "kjv", 3200, number) for number in range(4)]  # the fourth begins the text again
    assert len({document.name for document in alike}) == 4
    assert len({document.quiz for document in alike}) == 4
    read = [set(lines) & set(document.content.splitlines()) for document in alike]
    assert all(read)
    assert sum(map(len, read)) == len(set().union(*read))
    assert all(len(document.content) <= 3200 for document in alike)


def test_a_series_goes_on_until_full_attention_answers_enough() -> None:
    series = Series("smollm2", "kjv", 7600, 2, 4)
    assert series.wanted(1, LEAST_ANSWERED)
    assert not series.wanted(2, LEAST_ANSWERED)
    assert series.wanted(3, LEAST_ANSWERED - 1)
    assert not series.wanted(4, 0)
    assert series.document(3) == LongDocument("smollm2", "kjv", 7600, 3)


def test_the_plan_asks_three_models_and_can_answer_enough() -> None:
    options = argparse.Namespace(quick=False, models=["gemma", "smollm2", "qwen"], longest=None)
    chosen, shares = planned(options)
    assert {series.model for series in chosen} == {"gemma", "smollm2", "qwen"}
    assert shares == SHARES
    assert set(SHARES) == set(LOST)
    assert all(len(s.document(0).quiz.questions) * s.least >= LEAST_ANSWERED for s in SERIES)
    short, _ = planned(argparse.Namespace(**vars(options) | {"longest": 8000}))
    assert [series.model for series in short] == ["smollm2"]


@dataclass(frozen=True)
class Report:
    """What a store says of a call of two blocks, one of which retrieved for two heads."""

    widened: int = 1

    @property
    def blocks(self) -> list[argparse.Namespace]:
        modes = {"retrieve": [[True, False]], "exact": [[False, False]]}
        return [argparse.Namespace(mode=mode, widened=torch.tensor(w)) for mode, w in modes.items()]


def test_a_counted_store_counts_blocks_that_retrieved_and_is_the_store_in_all_else() -> None:
    store = argparse.Namespace(attend=lambda query, scale: query * scale, report=Report(), tokens=7)
    counted = retention.CountedStore(store)
    for _ in range(3):
        assert counted.attend(torch.tensor(2.0), scale=0.5) == 1
    assert (counted.widened, counted.blocks, counted.tokens) == (3, 6, 7)


def outcome(task: str, **right: bool) -> Outcome:
    names = {"full": FULL, "quarter": share_name(0.25), "few": share_name(0.06)}
    found = {names[name]: value for name, value in right.items()}
    return Outcome(
        "d", "smollm2", Question(task, "p", "a", 0.5), found, dict.fromkeys(found, 1), dict.fromkeys(found, 4)
    )


def test_only_what_full_attention_answers_is_counted() -> None:
    found = [
        outcome("needle", full=True, quarter=True, few=False),
        outcome("needle", full=True, quarter=True, few=True),
        outcome("needle", full=False),
        outcome("two hops", full=True, quarter=False, few=True),
    ]
    assert kept(found, 0.25) == (2, 3)
    assert kept(found, 0.25, "needle") == (2, 2)
    assert kept(found, 0.06, "needle", "two hops") == (2, 3)
    assert lost(found, 0.06, "needle") == 0.5
    assert lost(found, 0.06, "several needles") is None
    assert widened(found, 0.25) == 0.25
    assert widened([outcome("needle", full=False)], 0.25) is None


def test_sizes_are_those_of_the_long_regime() -> None:
    config = at_share("smollm2", 0.06, 7600, "reference").config
    assert config is not None
    assert (config.hot_tokens, config.candidate_tokens, config.retrieve_tokens) == (1024, 369, 184)
    wide = at_share("gemma", 0.25, 31000, "reference").config
    assert wide is not None
    assert (wide.candidate_tokens, wide.retrieve_tokens) == (7168, 1024)


@pytest.fixture(name="tiny")
def _tiny(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> LlamaForCausalLM:
    """A tiny model in place of the real ones; it answers everything, as whatever it says is right."""
    model = tiny_llama()
    monkeypatch.setattr(contexts, "load_model", lambda name: model)
    monkeypatch.setattr(retention, "load_tokenizer", lambda name: Letters())
    monkeypatch.setattr("benchmarks.fidelity.documents.load_tokenizer", lambda name: Letters())
    monkeypatch.setattr(Question, "right", lambda self, text: bool(text))
    return model


def test_blocks_are_counted_by_step_layer_and_head(
    tiny: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(Question, "right", lambda self, text: written.append(len(text)) or True)
    document = LongDocument("smollm2", "kjv", TOKENS)
    made = next(outcomes(Journal(tmp_path / "a.jsonl"), document, (0.25, 0.06), "reference"))
    assert made.right == {FULL: True, "25 %": True, "6 %": True}
    assert made.blocks[FULL] == 0
    for system, letters in zip(("25 %", "6 %"), written[1:], strict=True):
        # Every letter of the question and of the answer but for its last, in 2 layers for 2 KV heads.
        assert made.blocks[system] == 2 * 2 * (len(made.question.prompt) + letters - 1)
    assert 0 <= made.widened["25 %"] <= made.widened["6 %"] < made.blocks["6 %"]
    assert made.widened["6 %"] > 0  # random keys: estimates rank badly here and there


def test_a_run_that_was_cut_off_goes_on_where_it_was(
    tiny: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = LongDocument("smollm2", "kjv", TOKENS)
    for rest in (2, 1):
        journal = Journal(tmp_path / "a.jsonl")
        asked = outcomes(journal, document, (0.25,), "reference")
        for _ in range(rest):
            next(asked)
        asked.close()
        journal.close()
        monkeypatch.setattr(retention, "Context", None)  # the second run reads no document: what it wants is there
    keys = [made for made, _ in Journal(tmp_path / "a.jsonl").items()]
    assert len(keys) == 4
    assert keys[:2] == [(document.name, "0", FULL), (document.name, "0", "25 %", "1024", "128", "64")]


@pytest.mark.usefixtures("lines")
def test_kiv_is_asked_what_full_attention_answers_alone(
    tiny: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Question, "right", lambda self, text: False)
    made = next(outcomes(Journal(tmp_path / "a.jsonl"), LongDocument("smollm2", "kjv", TOKENS), (0.25,), "reference"))
    assert made.right == {FULL: False}


def test_tables_targets_and_a_picture_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(journal: Any, document: LongDocument, shares: Any, impl: str) -> list[Outcome]:
        right = {FULL: True} | {share_name(share): share > 0.01 for share in shares}
        counts = dict.fromkeys(right, 8)
        question = Question("needle", "p", "a", 0.5)
        return [Outcome(document.name, document.model, question, right, dict.fromkeys(right, 2), counts)] * 15

    monkeypatch.setattr(retention_part, "outcomes", asked)
    monkeypatch.setattr(retention_part, "open_journal", lambda options, part: Journal(tmp_path / "a.jsonl"))
    options = argparse.Namespace(quick=False, models=["smollm2"], longest=None, impl="fast")
    result = retention_part.run(options)
    assert result.settings["documents"] == "smollm2-kjv-7600, smollm2-kjv-7600-1, smollm2-kjv-7600-2"
    assert list(result.tables[0].rows[-2]) == ["all", "45 of 45", "45 of 45", "45 of 45", "45 of 45", "0 of 45"]
    assert list(result.tables[0].rows[-1]) == ["widened", None, 0.25, 0.25, 0.25, 0.25]
    verdicts = {target.name.partition(": ")[2]: target.verdict for target in result.targets}
    assert verdicts["needles lost at 6 %, of 45"] == "met"
    assert verdicts["needles lost at 0.8 %, of 45"].startswith("missed")
    assert verdicts["two hops and several needles lost at 6 %, of 0"] == "not measured"
    assert not any("too few" in note for note in result.notes)
    assert result.series == {"smollm2": {"questions": 45, "kept": [[0.25, 45], [0.06, 45], [0.016, 45], [0.008, 0]]}}
    result.write(tmp_path, retention_part.draw)
    assert (tmp_path / "fidelity_retention.png").stat().st_size > 10_000


def test_too_few_answers_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention_part, "outcomes", lambda *a: [outcome("needle", full=False)] * 26)
    monkeypatch.setattr(retention_part, "open_journal", lambda options, part: Journal(tmp_path / "a.jsonl"))
    options = argparse.Namespace(quick=False, models=["smollm2"], longest=None, impl="fast")
    result = retention_part.run(options)
    assert any("0 answers" in note for note in result.notes)
    retention_part.draw(Figure(), result)
