"""Two processes run one model, through transformers' own parallelism over gloo: the answers are those of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import FEEDS, OLD_TORCH, TEXT_TOKENS, TinyModel, pair
from ranks import RANKS, outcomes, run_ranks
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from pathlib import Path

EVEN: dict[str, Any] = {
    "vocab_size": 98
}  # transformers 5.18 divides the vocabulary between the processes, without a remainder
MODELS = {
    "llama": lambda: pair(LlamaConfig, LlamaForCausalLM, num_hidden_layers=4, **EVEN),
    # The first process of a pipeline has no KIV layer in use; the second has neither of the layers that masks ask.
    "gemma3": lambda: pair(
        # In float32: a model that is loaded in float64 rounds its embeddings' scale otherwise than one made so.
        Gemma3TextConfig, Gemma3ForCausalLM, num_hidden_layers=4, sliding_window=12, query_pre_attn_scalar=8,
        dtype=torch.float32,
        layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    ),
}  # fmt: skip
LAYERS_OF_RANK = {"llama": ({0, 1}, {2, 3}), "gemma3": (set(), {2})}
TURNS_TOKENS = TEXT_TOKENS + 6 + 5  # the last new token of a turn is not in the cache yet


def save(tiny: TinyModel, folder: Path) -> None:
    tiny.kiv.save_pretrained(folder)
    torch.save(tiny.ids, folder / "ids.pt")


def run_both(job: str, name: str, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]], float]:
    """Return what one process finds, what each of two finds, and how far logits may lie apart.

    Two processes sum in another order than one, and either may lie as far from the stock model as rounding allows.
    """
    tiny = MODELS[name]()
    save(tiny, folder)
    return outcomes(tiny.kiv, tiny.ids), run_ranks(job, folder), 2 * tiny.rounding()


def assert_equal_answers(one: dict[str, Any], found: dict[str, Any], bound: float) -> None:
    assert found["tokens"].keys() == one["tokens"].keys()
    for way, tokens in one["tokens"].items():
        assert torch.equal(found["tokens"][way], tokens), way
    for way, logits in one["logits"].items():
        assert (found["logits"][way] - logits).abs().max().item() <= bound, way
    # What leaves cold tokens out lies far away, so the comparison can fail.
    exact = one["logits"]["reference", "exact"]
    assert (found["logits"]["starved"] - exact).abs().max().item() > 100 * bound


@pytest.mark.parametrize("name", MODELS)
def test_pipeline_parallelism(name: str, tmp_path: Path) -> None:
    """Each process has half of the layers; the cache's other layers stay empty."""
    one, ranks, bound = run_both("pipeline", name, tmp_path)
    for found, mine in zip(ranks, LAYERS_OF_RANK[name], strict=True):
        assert_equal_answers(one, found, bound)
        for impl, lengths in found["lengths"].items():
            assert {i: length for i, length in lengths.items() if length} == dict.fromkeys(mine, TURNS_TOKENS), impl


@pytest.mark.skipif(OLD_TORCH, reason="transformers' tensor parallelism calls what torch has from 2.7 on")
def test_tensor_parallelism(tmp_path: Path) -> None:
    """Each process has half of the KV heads of every layer, and selects for them alone."""
    one, ranks, bound = run_both("tensor", "llama", tmp_path)
    for found in ranks:
        assert_equal_answers(one, found, bound)
        assert found["lengths"] == one["lengths"]
        for impl, heads in one["heads"].items():
            assert set(heads.values()) == {2}
            assert found["heads"][impl] == dict.fromkeys(heads, 2 // RANKS)


@pytest.mark.skipif(OLD_TORCH, reason="transformers' tensor parallelism calls what torch has from 2.7 on")
def test_one_kv_head_for_two_processes_is_an_error_of_transformers(tmp_path: Path) -> None:
    """It divides the head's channels; the model's code then finds no whole head, before any cache is asked."""
    save(pair(LlamaConfig, LlamaForCausalLM, num_hidden_layers=1, num_key_value_heads=1, **EVEN), tmp_path)
    with pytest.raises(AssertionError, match=rf"shape '\[1, {FEEDS['chunks'][0]}, -1, 8\]' is invalid"):
        run_ranks("tensor", tmp_path)
