"""lm-evaluation-harness with KIV: a task that needs no download, on a tiny model; skipped without lm-eval."""

# Only the environment of the session `harness` has lm-eval.
# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

pytest.importorskip("lm_eval")

import pyarrow
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from benchmarks.fidelity.harness import KIVHarness
from benchmarks.fidelity.tests.tiny import tiny_llama

LETTERS = "abcdefghijklmnopqrstuvwxyz .:"
KNOBS: dict[str, Any] = {
    "hot_tokens": 16,
    "page_tokens": 4,
    "candidate_tokens": 12,
    "retrieve_tokens": 4,
    "question_tokens": 8,
}
LONG = "the quick brown fox jumps over the lazy dog. " * 4


@pytest.fixture(scope="module", name="tokenizer")
def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {letter: i for i, letter in enumerate(LETTERS)} | {"<s>": len(LETTERS), "?": len(LETTERS) + 1}
    made = Tokenizer(WordLevel(vocabulary, unk_token="?"))
    made.pre_tokenizer = Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<s>", unk_token="?")


def model() -> LlamaForCausalLM:
    return tiny_llama(len(LETTERS) + 2)


def harness(tokenizer: PreTrainedTokenizerFast, impl: str, **knobs: Any) -> KIVHarness:
    return KIVHarness(model(), tokenizer, impl=impl, **(KNOBS | knobs))


def request(kind: str, *arguments: object) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def test_in_exact_mode_scores_are_those_of_full_attention(tokenizer: PreTrainedTokenizerFast) -> None:
    asked = [request("loglikelihood", LONG, "the fox"), request("loglikelihood", "", "a")]
    full = harness(tokenizer, "full").loglikelihood(asked)
    exact = harness(tokenizer, "reference", retrieve_tokens=None).loglikelihood(asked)
    for (a, same_a), (b, same_b) in zip(full, exact, strict=True):
        assert a == pytest.approx(b, abs=1e-3)
        assert same_a == same_b
    lossy = harness(tokenizer, "reference", tail="none").loglikelihood(asked)
    assert lossy[0][0] != pytest.approx(full[0][0], abs=1e-5), "nothing was left out: the test shows nothing"


def test_scores_are_those_of_one_forward_pass(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer(LONG + "the fox").input_ids
    with torch.no_grad():
        scores = model()(input_ids=torch.tensor([ids])).logits[0].log_softmax(dim=1)
    start = len(tokenizer(LONG).input_ids)
    expected = sum(float(scores[i - 1, ids[i]]) for i in range(start, len(ids)))
    found = harness(tokenizer, "full").loglikelihood([request("loglikelihood", LONG, "the fox")])
    assert found[0][0] == pytest.approx(expected, abs=1e-3)


def test_generation_stops(tokenizer: PreTrainedTokenizerFast) -> None:
    asked = [request("generate_until", LONG, {"until": ["."], "max_gen_toks": 5})]
    (text,) = harness(tokenizer, "reference").generate_until(asked)
    assert len(text.replace(" ", "")) <= 5  # the tokenizer puts spaces between the letters that it decodes
    assert "." not in text


def test_a_task_without_a_download(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [{"text": LONG + "a: ", "choices": ["fox", "dog"], "label": i % 2} for i in range(3)]
    # A fingerprint of its own spares a hash by pickling, which fails where packages lie outside site-packages.
    table = Dataset(pyarrow.Table.from_pylist(documents), fingerprint="smoke")
    task = ConfigurableTask(
        config={
            "task": "kiv_smoke",
            "custom_dataset": lambda **_: {"test": table},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{text}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{label}}",
            "metric_list": [{"metric": "acc"}],
        }
    )
    found = simple_evaluate(model=harness(tokenizer, "reference"), tasks=[task], bootstrap_iters=0)
    assert 0.0 <= found["results"]["kiv_smoke"]["acc,none"] <= 1.0
