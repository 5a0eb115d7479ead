"""Models whose modeling files look attention classes up by name are built with "kiv" as with any other attention."""

from __future__ import annotations

import copy
import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from hf_models import EXACT, FEEDS, STARVED, TEXT_TOKENS, VOCABULARY, feed
from kiv_hf import KIVCache, use_kiv
from kiv_reference.errors import KIVError
from test_any_patches import IDS, MODELS, SINGLE, rounding
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel

if TYPE_CHECKING:
    from collections.abc import Callable


TEXT_TYPES = {"falcon", "git", "gpt_neo", "gptj"}
IN_TABLES = [name for name in MODELS if name.split(",")[0] in TEXT_TYPES]
TOKENS: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}


def configuration(name: str) -> PreTrainedConfig:
    model_type, sizes = MODELS[name]
    return CONFIG_MAPPING[model_type](**copy.deepcopy(sizes), **TOKENS)


def built(
    name: str,
    config: PreTrainedConfig | None = None,
    make: Callable[..., Any] = AutoModelForCausalLM.from_config,
    **kwargs: Any,
) -> PreTrainedModel:
    torch.manual_seed(5)
    model = make(configuration(name) if config is None else config, **kwargs)
    return model.eval().to(torch.float32 if name in SINGLE else torch.float64)


def by_the_automatic_class(name: str, folder: Path) -> PreTrainedModel:
    return built(name, attn_implementation="kiv")


def by_its_own_class(name: str, folder: Path) -> PreTrainedModel:
    return built(name, make=type(built(name))._from_config, attn_implementation="kiv")


def from_files(name: str, folder: Path) -> Any:
    stock = built(name)
    stock.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="kiv", dtype=stock.dtype).eval()


def from_a_used_configuration(name: str, folder: Path) -> PreTrainedModel:
    return built(name, use_kiv(built(name)).config)


@pytest.fixture(params=[by_the_automatic_class, by_its_own_class, from_files, from_a_used_configuration])
def build(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Any]:
    return lambda name: request.param(name, tmp_path)


@pytest.mark.parametrize("name", IN_TABLES)
def test_a_model_from_a_table_serves_every_cache(name: str, build: Callable[[str], Any]) -> None:
    stock, model = built(name), build(name)
    bound = rounding(stock)
    expected = feed(stock, IDS, DynamicCache(config=stock.config), FEEDS["chunks"])
    cache = KIVCache(model.config, EXACT)
    assert (feed(model, IDS, cache, FEEDS["chunks"]) - expected).abs().max().item() <= bound
    assert cache.tokens().cold_ram > TEXT_TOKENS // 2
    starved = feed(model, IDS, KIVCache(model.config, STARVED), FEEDS["chunks"])
    assert (starved - expected).abs().max().item() > 10 * bound
    other = feed(model, IDS, DynamicCache(config=model.config), FEEDS["chunks"])
    assert (other - expected).abs().max().item() <= bound


@pytest.mark.parametrize("name", [name for name in MODELS if name not in IN_TABLES])
def test_a_model_of_its_own_attention_says_use_kiv(name: str, build: Callable[[str], Any]) -> None:
    stock, model = built(name), build(name)
    expected = feed(stock, IDS, DynamicCache(config=stock.config), FEEDS["chunks"])
    with pytest.raises(KIVError, match="use_kiv"):
        feed(model, IDS, KIVCache(model.config, EXACT), FEEDS["chunks"])
    for cache in (DynamicCache(config=model.config), KIVCache(use_kiv(model).config, EXACT)):
        logits = feed(model, IDS, cache, FEEDS["chunks"])
        assert (logits - expected).abs().max().item() <= rounding(stock)


PIXELS = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
VISION = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
    "initializer_range": 0.3,
}  # fmt: skip
SAM = {**VISION, "output_channels": 8, "window_size": 2, "global_attn_indexes": [1], "num_pos_feats": 4, "mlp_dim": 16}
BARK = {
    "block_size": TEXT_TOKENS, "input_vocab_size": VOCABULARY, "output_vocab_size": VOCABULARY, "num_layers": 2,
    "num_heads": 2, "hidden_size": 16, "initializer_range": 0.3,
}  # fmt: skip
SUPERGLUE = {
    "hidden_size": 16, "keypoint_encoder_sizes": [8, 16], "gnn_layers_types": ["self", "cross"],
    "num_attention_heads": 2, "sinkhorn_iterations": 3, "initializer_range": 0.3,
    "keypoint_detector_config": {
        "model_type": "superpoint", "encoder_hidden_sizes": [8, 8], "decoder_hidden_size": 8,
        "keypoint_decoder_dim": 65, "descriptor_decoder_dim": 16,
    },
}  # fmt: skip


def see(model: Any) -> Any:
    return model(PIXELS)[0]


def match(model: Any) -> Any:
    numbers = torch.Generator().manual_seed(3)
    points, descriptors, scores = (torch.rand(1, 2, 9, *more, generator=numbers).double() for more in [(2,), (16,), ()])
    mask = torch.ones(1, 2, 9, dtype=torch.int)
    mask[:, 1, 6:] = 0
    return model._match_image_pair(32 * points, descriptors, scores, 32, 32, mask=mask, output_hidden_states=True)[2][
        -1
    ]


def speak(model: Any) -> torch.Tensor:
    return feed(model, IDS, DynamicCache(config=model.config), FEEDS["chunks"])


def refine(model: Any) -> Any:
    mask = torch.ones(1, TEXT_TOKENS, dtype=torch.long)
    mask[:, :7] = 0
    return model(2, IDS[..., None].expand(-1, -1, 8), attention_mask=mask).logits


OTHERS = {
    "data2vec": ("data2vec_vision", "Data2VecVision", "Model", {**VISION, "intermediate_size": 16}, see),
    "sam": ("sam", "SamVision", "Model", SAM, see),
    "sam_hq": ("sam_hq", "SamHQVision", "Model", SAM, see),
    "unlimited_ocr": ("unlimited_ocr", "UnlimitedOcrSamVision", "Encoder", {**SAM, "downsample_channels": [8, 8]}, see),
    "deepseek_ocr2": ("deepseek_ocr2", "DeepseekOcr2SamVision", "Encoder", {**SAM, "downsample_channels": [8, 8]}, see),
    "superglue": ("superglue", "SuperGlue", "ForKeypointMatching", SUPERGLUE, match),
    "bark": ("bark", "BarkSemantic", "Model", BARK, speak),
    "bark, fine": ("bark", "BarkFine", "Model", BARK, refine),
}


def classes(name: str) -> tuple[Any, Callable[[], Any]]:
    file, prefix, suffix, sizes, _ = OTHERS[name]
    package = f"transformers.models.{name.split(',')[0]}"
    modeling = pytest.importorskip(f"{package}.modeling_{file}", reason="not in this version of transformers")
    config_class = getattr(import_module(f"{package}.configuration_{file}"), prefix + "Config")
    return getattr(modeling, prefix + suffix), lambda: config_class(**copy.deepcopy(sizes))


@pytest.mark.parametrize("name", OTHERS)
def test_models_without_a_kiv_version_are_as_without_kiv(name: str) -> None:
    kind, config = classes(name)
    run = OTHERS[name][4]
    expected = run(built(name, config(), kind._from_config))
    model = built(name, config(), kind._from_config, attn_implementation="kiv")
    assert model.config._attn_implementation == "kiv"
    assert expected.std() > 0
    assert torch.equal(run(model), expected)
    again = built(name, use_kiv(model).config, kind)
    assert torch.equal(run(again), expected)


def test_bark_refuses_a_kiv_cache_by_name() -> None:
    kind, config = classes("bark")
    model = built("bark", config(), kind._from_config, attn_implementation="kiv")
    with pytest.raises(KIVError, match="use_kiv"):
        feed(model, IDS, KIVCache(model.config, EXACT), FEEDS["chunks"])


def test_every_table_of_transformers_is_tested() -> None:
    lookup = re.compile(r"\w+\[\s*(?:\w+\.)*_?attn_implementation\s*\](?!\s*=)")
    files = Path(transformers.__file__).parent.glob("models/*/modeling_*.py")
    found = {file.parent.name for file in files for line in lookup.findall(file.read_text()) if "CLASSES" in line}
    assert TEXT_TYPES < found <= TEXT_TYPES | {name.split(",")[0] for name in OTHERS}


ATTENTION_CLASSES = {"eager": torch.nn.Identity, "sdpa": torch.nn.Flatten}
NO_CLASSES = {"eager": "a word"}


class ModelThatComesWithItsWeights(PreTrainedModel):
    config_class = PreTrainedConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.attention = ATTENTION_CLASSES[config._attn_implementation]()


def test_a_modeling_file_outside_transformers() -> None:
    model = ModelThatComesWithItsWeights._from_config(PreTrainedConfig(), attn_implementation="kiv")
    assert type(model.attention) is torch.nn.Flatten
    assert NO_CLASSES == {"eager": "a word"}
