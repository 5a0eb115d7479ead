"""What a cache says about a model whose rotary factors depend on the length of the text."""

from __future__ import annotations

from typing import Any

import pytest
from hf_models import EXACT
from kiv_hf import KIVCache
from phi_models import ROPE, SHORT, SIZES, TYPE_SIZES, TYPES, Phi, build, forget_warnings
from transformers import CONFIG_MAPPING, LlamaConfig, LlavaConfig


@pytest.fixture(params=TYPES)
def phi(request: pytest.FixtureRequest) -> Phi:
    return build(request.param)


@pytest.fixture(autouse=True)
def _again() -> None:
    forget_warnings()


def test_says_at_which_length_and_what(phi: Phi, caplog: pytest.LogCaptureFixture) -> None:
    phi.cache()
    assert f"more than {SHORT} tokens" in caplog.text
    assert "resets its KIVCache once" in caplog.text
    caplog.clear()
    phi.cache()
    assert caplog.text == ""


@pytest.mark.parametrize("around", [False, True], ids=["itself", "the text part of another"])
def test_of_a_model_that_transformers_lets_keep_its_cache(caplog: pytest.LogCaptureFixture, around: bool) -> None:
    rope = ROPE | {"original_max_position_embeddings": SHORT}
    kind: Any = CONFIG_MAPPING["phi3"] if around else LlamaConfig
    text = kind(**SIZES | TYPE_SIZES["phi3"], rope_parameters=rope)
    KIVCache(LlavaConfig(text_config=text) if around else text, EXACT)
    assert f"more than {SHORT} tokens" in caplog.text
    assert "resets its KIVCache once" in caplog.text
