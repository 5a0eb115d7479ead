"""Where weights lie, in what precision, and who calls the model: right, or refused clearly."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import EXACT, FEEDS, OLD_TORCH, TINY_MODELS, VOCABULARY, TinyModel, feed, in_parts
from kiv_hf import KIVCache, use_kiv
from kiv_hf.cache.layer import KIVLayerMixin
from kiv_hf.guards import eager
from kiv_reference.errors import KIVUnsupportedError
from test_any_adapters import MODELS as ADAPTED
from tokenizers import Tokenizer, models, pre_tokenizers
from torch._dynamo import eval_frame
from torch._dynamo.exc import Unsupported
from transformers import PreTrainedTokenizerFast, pipeline

if TYPE_CHECKING:
    from pathlib import Path

MODELS = {**TINY_MODELS, **ADAPTED}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_precision(name: str, dtype: torch.dtype) -> None:
    """In float64 as the stock cache; in half precision KIV errs as the stock cache does, measured against float64."""
    tiny, twin = MODELS[name](), MODELS[name]()
    for model in (tiny.stock, tiny.kiv, twin.stock):
        model.set_experts_implementation("eager")  # the default has no float64
    truth = feed(twin.stock.double(), tiny.ids, None, [96]) if dtype != torch.float64 else None
    stock = feed(tiny.stock.to(dtype), tiny.ids, tiny.stock_cache(), FEEDS["chunks"]).double()
    logits = feed(tiny.kiv.to(dtype), tiny.ids, tiny.cache(), FEEDS["chunks"]).double()
    if truth is None:
        # Eager attention, which Gemma 2 needs, takes its softmax in float32 whatever the dtype.
        close = 1e-4 if name == "gemma2" else 1e-10
        assert (logits - stock).abs().max() <= close * stock.abs().max()
    else:
        assert (logits - truth).square().mean() <= 4 * (stock - truth).square().mean()


def test_offloaded_weights(llama: TinyModel, tmp_path: Path) -> None:
    """Weights in RAM or in files, brought to the device for each layer."""
    accelerate = pytest.importorskip("accelerate")
    expected = feed(llama.stock, llama.ids, llama.stock_cache(), FEEDS["chunks"])
    bound = llama.rounding()
    accelerate.cpu_offload(llama.kiv, execution_device=torch.device("cpu"))
    assert (feed(llama.kiv, llama.ids, llama.cache(), FEEDS["chunks"]) - expected).abs().max().item() <= bound
    twin = TINY_MODELS["llama"]().kiv
    accelerate.disk_offload(twin, str(tmp_path), execution_device=torch.device("cpu"))
    assert twin.model.layers[0].self_attn.q_proj.weight.is_meta
    assert (feed(twin, llama.ids, llama.cache(), FEEDS["chunks"]) - expected).abs().max().item() <= bound


def test_a_device_map(llama: TinyModel, tmp_path: Path) -> None:
    """Loaded in parts: some layers stay in memory, some lie in a folder."""
    expected = feed(llama.stock, llama.ids, llama.stock_cache(), FEEDS["chunks"])
    logits = feed(in_parts(llama.kiv, tmp_path), llama.ids, llama.cache(), FEEDS["chunks"])
    assert (logits - expected).abs().max().item() <= llama.rounding()


def test_a_model_without_weights_is_refused(llama: TinyModel) -> None:
    with torch.device("meta"):
        model = type(llama.kiv)(llama.config)
    with pytest.raises(KIVUnsupportedError, match="meta"):
        model(llama.ids.to("meta"), past_key_values=llama.cache())


@pytest.mark.gradients
def test_training_is_refused(llama: TinyModel) -> None:
    with pytest.raises(KIVUnsupportedError, match="gradients"):
        llama.kiv.train()(llama.ids, past_key_values=llama.cache())
    with pytest.raises(KIVUnsupportedError, match="gradients"):
        llama.kiv.eval()(llama.ids, past_key_values=llama.cache())
    with torch.no_grad(), pytest.raises(KIVUnsupportedError, match=r"eval\(\)"):
        llama.kiv.train()(llama.ids, past_key_values=llama.cache())


@pytest.mark.skipif(OLD_TORCH, reason="transformers 5.23 compiles no model, with its own cache either, below torch 2.7")
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_compiled_model(name: str) -> None:
    """What is around the attention is compiled; KIV itself runs as it is."""
    tiny = TINY_MODELS[name]()
    expected = feed(tiny.stock, tiny.ids, tiny.stock_cache(), FEEDS["chunks"])
    compiled = torch.compile(tiny.kiv, backend="eager")
    logits = feed(compiled, tiny.ids, tiny.cache(), FEEDS["chunks"])
    assert (logits - expected).abs().max().item() <= tiny.rounding()


@pytest.mark.skipif(OLD_TORCH, reason="transformers 5.23 compiles no model, with its own cache either, below torch 2.7")
def test_what_a_compiled_model_calls_is_not_compiled(llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it wrapped for the compiler where nothing is compiled."""
    take, seen = KIVLayerMixin.take_staged, list[tuple[bool, bool]]()

    def taking(layer: Any, *arguments: Any) -> None:
        callers, frame = set[str](), sys._getframe()
        while frame is not None:
            callers.add(frame.f_code.co_filename)
            frame = frame.f_back
        seen.append((bool(eager._compiles()), eval_frame.__file__ in callers))
        take(layer, *arguments)

    monkeypatch.setattr(KIVLayerMixin, "take_staged", taking)
    feed(llama.kiv, llama.ids, llama.cache(), FEEDS["chunks"])
    assert set(seen) == {(False, False)}
    seen.clear()
    feed(torch.compile(llama.kiv, backend="eager"), llama.ids, llama.cache(), FEEDS["chunks"])
    assert set(seen) == {(False, True)}


def test_one_graph_for_the_whole_model_is_refused(llama: TinyModel) -> None:
    compiled = torch.compile(llama.kiv, backend="eager", fullgraph=True)
    with pytest.raises(Unsupported):
        compiled(llama.ids, past_key_values=llama.cache())


def test_the_text_generation_pipeline(llama: TinyModel) -> None:
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1")
    text = " ".join(f"w{int(i)}" for i in llama.ids[0])
    settings = {"max_new_tokens": 8, "do_sample": False}
    cache = llama.cache()
    said = [
        pipeline("text-generation", model=model, tokenizer=tokenizer)(text, past_key_values=used, **settings)
        for model, used in ((llama.stock, llama.stock_cache()), (llama.kiv, cache))
    ]
    assert said[0] == said[1]
    assert said[0][0]["generated_text"].startswith(text)
    assert cache.tokens().cold_ram > 0


def test_cache_implementation_is_left_alone(llama: TinyModel) -> None:
    """Naming a kind of cache beside a KIVCache is transformers' error; without a cache the name works as ever."""
    settings = {"max_new_tokens": 3, "do_sample": False, "cache_implementation": "dynamic"}
    with pytest.raises(ValueError, match="cache_implementation"):
        llama.kiv.generate(llama.ids, past_key_values=llama.cache(), **settings)
    expected = llama.stock.generate(llama.ids, **settings)
    assert torch.equal(llama.kiv.generate(llama.ids, **settings), expected)


def test_no_cache_at_all(llama: TinyModel) -> None:
    expected = llama.stock(llama.ids, use_cache=False).logits
    assert (llama.kiv(llama.ids, use_cache=False).logits - expected).abs().max().item() <= llama.rounding()


def test_use_kiv_is_the_same_as_the_name(llama: TinyModel) -> None:
    model = use_kiv(llama.stock)
    logits = model(llama.ids, past_key_values=KIVCache(model.config, EXACT)).logits
    assert torch.equal(logits, llama.kiv(llama.ids, past_key_values=llama.cache()).logits)
