"""Where a model comes from, and whether KIV can serve it: found out before anything large is loaded."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from kiv_reference.errors import KIVError, KIVUnsupportedError, KIVUsageError, refuse
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from ... import KIVCache, use_kiv
from .gguf import convert, converted
from .gguf_file import check_gguf
from .model_files import check_fields, check_folder

if TYPE_CHECKING:
    import os
    from collections.abc import Generator


@dataclass(frozen=True)
class Source:
    """A model as the user named it.

    Attributes
    ----------
    name : str
        What the user typed.
    location : str
        A hub id or a folder, as transformers takes it.
    gguf : Path or None
        The ``.gguf`` file, which is converted before it is loaded.
    """

    name: str
    location: str
    gguf: Path | None = None


def find_source(name: str) -> Source:
    """Decide what `name` is: a ``.gguf`` file, a folder, or else a hub id.

    Raises
    ------
    KIVUsageError
        `name` is a path, and nothing that holds a model is there.
    KIVUnsupportedError
        It is a ``.gguf`` that is truncated or damaged.
    """
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise refuse(KIVUsageError, "--model must name a file that exists", name, "Check the path.")
        check_gguf(path)
        return Source(name, str(path.parent), path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            remedy = "Name the folder that save_pretrained wrote, or a .gguf file in it."
            raise refuse(KIVUsageError, "A model folder must hold a config.json", name, remedy)
        check_folder(path)
        return Source(name, str(path))
    if path.exists():
        raise refuse(KIVUsageError, "A model file must be a .gguf", name, "Name a .gguf file, a folder or a hub id.")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or not name.strip():
        raise refuse(KIVUsageError, "--model must name a folder that exists", repr(name), "Check the path.")
    return Source(name, name)


def load_config(source: Source, *, text_only: bool = True) -> PreTrainedConfig:
    """Load the configuration and check that KIV can serve the model.

    Parameters
    ----------
    text_only : bool
        Whether models that take images or sound beside text are refused, which `load_model` does not load.

    Raises
    ------
    KIVUnsupportedError
        It cannot be loaded, is no causal language model, or has no layer of full attention.
    """
    if source.gguf is None:
        with explained(source):
            fields, _ = PreTrainedConfig.get_config_dict(source.location)
        check_fields(fields, f"the config.json of {source.name!r}")
    config = _load(source, AutoConfig)
    problem = None
    if config.is_encoder_decoder:
        problem = "an encoder and a decoder"
    elif text_only and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        problem = "no causal language model"
    elif not KIVCache(config).kiv_layers():
        problem = "no layer of full attention, so nothing for KIV to hold"
    if problem is not None:
        raise refuse(
            KIVUnsupportedError,
            "kiv serves decoder-only language models with full attention",
            f"{source.name} of type {config.model_type!r}, which has {problem}",
            "Choose another model.",
        )
    return config


def load_tokenizer(source: Source) -> Any:
    """Load the tokenizer; raises KIVUnsupportedError as `load_config`."""
    return _load(source, AutoTokenizer)


def load_model(source: Source, dtype: str, device: str) -> Any:
    """Load the model with its attention routed through KIV, in evaluation mode.

    Parameters
    ----------
    dtype : "auto" or one of `DTYPES`
        "auto" is the dtype of the saved weights; bfloat16 for a ``.gguf``, which is converted on first use.
    device : str
        As torch names it.

    Raises
    ------
    KIVUnsupportedError
        The model cannot be loaded, or its attention cannot be routed.
    """
    kind: Any = "auto" if dtype == "auto" else getattr(torch, dtype)
    if source.gguf is not None:
        kind = torch.bfloat16 if dtype == "auto" else kind
        with explained(source):
            source = Source(source.name, str(convert(source.gguf, kind)))
    with explained(source):
        model = _load(source, AutoModelForCausalLM, dtype=kind).to(device)
        return use_kiv(model.eval())


def _load(source: Source, kind: Any, **keywords: Any) -> Any:
    location: str | os.PathLike[str] = source.location
    if source.gguf is not None:
        folder = converted(source.gguf)
        if folder is None:
            keywords["gguf_file"] = source.gguf.name
        else:
            location = folder
    with explained(source):
        return kind.from_pretrained(location, **keywords)


@contextmanager
def explained(source: Source) -> Generator[None]:
    """Turn transformers' ways of failing to load a model into one sentence.

    Raises
    ------
    KIVError
        In place of whatever the libraries raise.
    """
    try:
        yield
    except KIVError:
        raise
    except Exception as error:
        # Malformed files make libraries fail in any way; the kind says what the text of a KeyError does not.
        kind = "" if isinstance(error, (OSError, ValueError, ImportError)) else f"{type(error).__name__}: "
        reason = kind + (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        local = source.gguf is not None or Path(source.location).is_dir()
        raise refuse(
            KIVUnsupportedError,
            "--model must be a hub id, a local folder, or a .gguf file that transformers can load",
            f"{source.name!r}: {reason}",
            "Download or save the model again, or choose another one."
            if local
            else "Check the name, and the connection (HF_HUB_OFFLINE=1 allows local models only).",
        ) from error
