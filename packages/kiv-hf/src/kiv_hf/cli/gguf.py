"""A ``.gguf`` file as a folder that loads fast: converted once, kept in the user's cache folder."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import xxhash
from platformdirs import user_cache_path


def cache_folder(gguf: Path) -> Path:
    """Return where the conversions of `gguf` are kept: by its name and a hash of all of it."""
    facts = gguf.stat()
    return user_cache_path("kiv") / "gguf" / f"{gguf.stem}-{_digest(gguf, facts.st_size, facts.st_mtime_ns)}"


@cache
def _digest(gguf: Path, size: int, changed_ns: int) -> str:  # size and time of change: a new file is hashed anew
    digest = xxhash.xxh3_128()
    with gguf.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def converted(gguf: Path, dtype: torch.dtype | None = None) -> Path | None:
    """Return a folder to which `gguf` was converted, in `dtype` or in any, or None."""
    pattern = "[!.]*" if dtype is None else _name(dtype)  # a folder with a dot is not finished
    return next(iter(sorted(cache_folder(gguf).glob(pattern))), None)


def convert(gguf: Path, dtype: torch.dtype) -> Path:
    """Return the folder with config, tokenizer and dense weights of `gguf`; make it if it is not there.

    A conversion that breaks off leaves nothing behind; two at once do not disturb each other.
    """
    folder = cache_folder(gguf) / _name(dtype)
    if folder.exists():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        AutoTokenizer.from_pretrained(**source).save_pretrained(scratch)
        AutoModelForCausalLM.from_pretrained(**source, dtype=dtype, **_dense()).save_pretrained(scratch)
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was faster, and its result is as good
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _dense() -> dict[str, Any]:
    """Keywords for dense weights: newer versions of transformers may else keep the blocks packed, which is slow."""
    import transformers

    packed = getattr(transformers, "GgufConfig", None)
    return {} if packed is None else {"quantization_config": packed(dequantize=True)}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
