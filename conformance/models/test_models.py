"""Every kind of attention once; with ``--profile nightly`` every type of the page (SPEC 4.8, 11.2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from .catalog import causal_types, multimodal_types
from .sweep import sweep

SUPPORTED = {
    "llama": "GQA",
    "gpt_bigcode": "MQA",
    "opt": "MHA, learned positions",
    "qwen3": "QK-norm",
    "phi": "partial rotary",
    "gemma2": "softcap and sliding window",
    "gemma3_text": "sliding window and QK-norm",
    "gpt_oss": "learned sinks and sliding window",
    "cohere2": "sliding window and layers without positions",
    "llama4_text": "chunked and full",
    "deepseek_v2": "MLA, the older kind",
    "deepseek_v3": "MLA",
    "diffllama": "two calls on one update",
    "jetmoe": "repeated heads",
    "gemma3n_text": "K/V shared across layers",
    "gemma4_text": "K/V shared across layers, keys as values",
    "qwen3_next": "linear and full",
    "jamba": "state space and full",
    "bamba": "state space and full, partial rotary",
    "falcon_h1": "state space beside attention",
    "lfm2": "convolution and full",
    "zamba2": "attention shared by layers",
    "minimax_m3_vl_text": "indexed and full",
    "bloom": "ALiBi",
    "mpt": "ALiBi",
    "falcon": "bypasses the interface",
    "gpt_neo": "bypasses the interface, local layers",
    "gptj": "bypasses the interface, partial rotary",
    "codegen": "bypasses the interface, fused projection",
    "glm_ocr": "with images: positions in three dimensions",
    "blip": "with images: the text part",
    "florence2": "with images: encoder-decoder",
}
"""A type for each kind of attention."""

DELEGATED = {"deepseek_v32": "indexed", "mamba2": "state space", "recurrent_gemma": "linear and sliding window"}
REFUSED = {"inkling_text": "position_bias", "doge": "4-D mask", "cpmant": "use_kiv", "paligemma": "4-D mask"}

PARTS = 8
"""All types in one test would take half an hour, which is the limit of a test, and one core."""


@pytest.mark.parametrize("model_type", SUPPORTED, ids=lambda name: f"{name}: {SUPPORTED[name]}")
def test_kinds_of_attention(model_type: str) -> None:
    """Exact KIV equals the stock cache, with most tokens cold; under a small budget fast equals the reference."""
    (outcome,) = sweep([model_type])
    assert outcome.verdict == "supported", outcome
    assert outcome.fast > 0


@pytest.mark.parametrize("model_type", DELEGATED)
def test_nothing_to_retrieve(model_type: str) -> None:
    """A cache without KIV layers equals the stock cache too."""
    (outcome,) = sweep([model_type])
    assert outcome.verdict == "delegated", outcome


@pytest.mark.parametrize("model_type", REFUSED)
def test_refusals_name_their_cause(model_type: str) -> None:
    """What cannot be right is an error that says why."""
    (outcome,) = sweep([model_type])
    assert outcome.verdict == "refused", outcome
    assert REFUSED[model_type] in outcome.reason


def test_the_page_has_a_row_for_every_type() -> None:
    """A transformers version with new types needs a new page."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    missing = [name for name in causal_types() + multimodal_types() if f"| {name} |" not in page]
    assert not missing, f"run python -m conformance.models: no row for {missing}"
    assert "| wrong | 0 | 0 | 0 |" in page


@pytest.mark.parametrize("part", range(PARTS))
def test_every_type(request: pytest.FixtureRequest, part: int) -> None:
    """The page's verdicts still hold."""
    if request.config.getoption("--profile") != "nightly":
        pytest.skip("the subset above is what a short run has time for")
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    types = causal_types() + multimodal_types()
    changed = [o for o in sweep(types[part::PARTS]) if f"| {o.model_type} | {o.verdict} |" not in page]
    assert not changed, changed
