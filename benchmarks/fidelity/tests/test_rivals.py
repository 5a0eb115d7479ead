"""Bytes and refusals of rivals, and the plan of a full run."""

from __future__ import annotations

import argparse

import pytest
import torch
from kiv_hf import KIVCache, KIVConfig
from matplotlib.figure import Figure
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from benchmarks.fidelity.memory import stock_bytes, tensors
from benchmarks.fidelity.plan import DUPLICATES, LENGTHS, PHONEBOOK_TOKENS, QUICK_TOKENS, Document, documents
from benchmarks.fidelity.rival_costs import cache_bytes
from benchmarks.fidelity.rivals import COLUMNS, draw, timed_lengths
from benchmarks.fidelity.systems import FULL, systems
from benchmarks.fidelity.task_level import wanted
from benchmarks.fidelity.tasks import Question
from benchmarks.models import twin
from benchmarks.report import Result

CONFIG = LlamaConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def test_bytes_of_a_plain_cache_are_those_of_its_keys_and_values():
    cache = DynamicCache(config=CONFIG)
    for layer in range(2):
        cache.update(torch.randn(1, 2, 50, 8), torch.randn(1, 2, 50, 8), layer)
    assert cache_bytes(cache) == stock_bytes(cache.layers) == 2 * 2 * 2 * 50 * 8 * 4


def test_bytes_of_a_quantised_tensor_are_those_of_its_parts():
    quanto = pytest.importorskip("optimum.quanto")
    whole = torch.randn(128, 64)
    scale, shift = quanto.MaxOptimizer()(whole, quanto.qint4, 0, 64)
    packed = quanto.quantize_weight(whole, quanto.qint4, 0, scale, shift, group_size=64)
    held = sum(tensor.nbytes for tensor in tensors(packed))
    assert 128 * 64 // 2 < held < 128 * 64


def test_bytes_of_a_kiv_cache_cover_all_tokens_and_its_index():
    model = twin(LlamaForCausalLM(CONFIG).eval(), "kiv")
    cache = KIVCache(model.config, KIVConfig(hot_tokens=32, page_tokens=8, candidate_tokens=16, retrieve_tokens=4))
    with torch.no_grad():
        model(input_ids=torch.arange(90)[None], past_key_values=cache)
    assert cache_bytes(cache) == sum(cache.memory()) > 2 * 2 * 2 * 90 * 8 * 4


def test_systems_have_names_of_their_own_and_full_attention_first():
    for model in ("gemma", "smollm2"):
        found = systems(model, "fast")
        assert found[0].name == FULL
        assert len({system.name for system in found}) == len(found)
        assert not found[0].rival


def test_the_plan_asks_what_it_should():
    for model in LENGTHS:
        planned = list(documents(model, 0, False, None))
        assert {d.tokens for d in planned} == {PHONEBOOK_TOKENS[model], *LENGTHS[model]}
        assert len({(d.tokens, d.name) for d in planned}) == len(planned)
        tasks = [q.task for d in planned for q in d.quiz.questions]
        assert tasks.count("phonebook") == 100
        assert tasks.count("needle") == 10 * len(LENGTHS[model])
        kinds = {"several needles", f"near-duplicate {DUPLICATES[model][0]}", "two hops", "aggregation", "counting"}
        assert kinds <= set(tasks)
        assert planned == list(documents(model, 0, False, None))
        assert planned != list(documents(model, 1, False, None))
    beyond = [q.task for d in documents("gemma", 0, False, None) if d.tokens > 32768 for q in d.quiz.questions]
    assert beyond
    assert "two hops" not in beyond


def test_who_is_asked():
    found = systems("smollm2", "fast")
    short, *_, long = documents("smollm2", 0, False, None)

    def asked(document: Document, task: str, full_right: bool) -> set[str]:
        question = Question(task, "", "", 0.5)
        return {s.kind for s in found if wanted(document, question, s, full_right)}

    assert asked(short, "needle", False) == {"full"}
    assert asked(short, "aggregation", False) == {"full", "kiv"}
    assert asked(short, "needle", True) == {s.kind for s in found}
    assert asked(long, "needle", True) == {"full", "kiv", "original", "window"}


@pytest.mark.parametrize(
    ("model", "longest", "expected"),
    [
        ("gemma", None, [8192, 32768]),
        ("gemma", 8192, [8192]),
        ("gemma", 4096, []),
        ("smollm2", None, [7680]),
    ],
)
def test_costs_are_taken_at_a_short_and_at_the_longest_context(model: str, longest: int | None, expected: list[int]):
    assert timed_lengths(model, argparse.Namespace(quick=False, longest=longest)) == expected
    assert timed_lengths(model, argparse.Namespace(quick=True, longest=longest)) == [QUICK_TOKENS[model]]


def test_every_table_of_costs_has_a_panel():
    result = Result("none", "none", {})
    for tokens in (8192, 32768):
        table = result.table(f"Model: {tokens:,} tokens, hot 2048", *COLUMNS)
        table.add(FULL, 0.0, "100%", None, 1.0, 10.0, 1.0, 0.0)
        table.add("KIV", 0.01, "99%", None, 0.5, 5.0, 2.0, 0.0)
    result.table("kvpress: other columns", "press").add("none")
    figure = Figure()
    draw(result)(figure)
    assert [axes.get_title() for axes in figure.axes] == ["Model: 8,192 tokens", "Model: 32,768 tokens"]
    assert all(len(axes.collections) == 1 for axes in figure.axes)
