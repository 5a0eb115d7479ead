"""A ``.gguf`` file as a folder that loads fast: converted once, kept in the user's cache folder."""

from __future__ import annotations

import shutil
import signal
import threading
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import xxhash
from platformdirs import user_cache_path

from ..units import dtype_name
from .manifest import is_intact, write_manifest
from .unfinished import scratch_folder, sweep

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    import torch


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
    pattern = "[!.]*" if dtype is None else dtype_name(dtype)  # a folder with a dot is not finished
    return next((folder for folder in sorted(cache_folder(gguf).glob(pattern)) if is_intact(folder)), None)


def convert(gguf: Path, dtype: torch.dtype) -> Path:
    """Return the folder with config, tokenizer and dense weights of `gguf`; make it if it is not there.

    A conversion that breaks off leaves nothing behind; two at once do not disturb each other; what a killed process
    left is removed, and a damaged result is made again.
    """
    folder = cache_folder(gguf) / dtype_name(dtype)
    sweep(folder.parent.parent)
    if is_intact(folder):
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    with ended_by_signals(), scratch_folder(folder.parent) as scratch:
        source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        AutoTokenizer.from_pretrained(**source).save_pretrained(scratch)
        AutoModelForCausalLM.from_pretrained(**source, dtype=dtype, **_dense()).save_pretrained(scratch)
        write_manifest(scratch)
        if folder.exists() and not is_intact(folder):
            shutil.rmtree(folder)
        try:
            scratch.rename(folder)
        except OSError:
            if not is_intact(folder):  # else another process was faster, and its result is as good
                raise
    return folder


@contextmanager
def ended_by_signals() -> Generator[None]:
    """Let signals that ask a process to end raise SystemExit, so that it clears up behind itself.

    Raises
    ------
    SystemExit
        Such a signal came.
    """
    if threading.current_thread() is not threading.main_thread():  # handlers belong to the main thread
        yield
        return

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]  # nohup ignores SIGHUP
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _dense() -> dict[str, Any]:
    """Return keywords for dense weights: newer transformers may else keep the blocks packed, which is slow."""
    import transformers

    packed = getattr(transformers, "GgufConfig", None)
    return {} if packed is None else {"quantization_config": packed(dequantize=True)}
