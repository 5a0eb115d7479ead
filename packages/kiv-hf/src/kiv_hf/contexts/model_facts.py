"""What decides a model's numbers beside its weights: configuration, rotary embeddings, dtypes, adapters."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PreTrainedConfig

_NO_NUMBERS = frozenset({
    # where it was loaded from, and by what
    "name_or_path", "transformers_version", "architectures", "auto_map", "tokenizer_class", "gguf_file",
    # dtypes and quantisation have fields of their own; what is written here may be what was asked for, not what is
    "dtype", "torch_dtype", "quantization_config",
    # what a call returns or keeps
    "use_cache", "output_attentions", "output_hidden_states", "return_dict", "gradient_checkpointing", "torchscript",
    "attn_implementation", "experts_implementation",
    # what generate begins and ends with
    "bos_token_id", "eos_token_id", "sep_token_id", "decoder_start_token_id", "forced_bos_token_id",
    "forced_eos_token_id",
    # heads of classifiers
    "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params",
})  # fmt: skip
"""Fields of any configuration that change no key or value. One that is not listed counts."""

_FREQUENCIES = 16
"""Of so many of a table of inverse frequencies a note is taken, the first and the last among them."""


def config_and_rope(config: PreTrainedConfig, frequencies: list[list[float]]) -> tuple[str, str]:
    """Return the fields of a configuration with those of its parts, as JSON: those of rotary embeddings apart.

    A field that is None counts as one that is not there: later versions of transformers add such fields.

    Parameters
    ----------
    config : PreTrainedConfig
    frequencies : list of list of float
        What `frequencies_of` returned.
    """
    fields = dict(_flat(config.to_dict()))
    rope = {path: value for path, value in fields.items() if _is_rope(path.rpartition(".")[2])}
    others = {path: value for path, value in fields.items() if path not in rope}
    if rope:  # other positions may be counted from the number of the padding token; scripts set it as they like
        others = {path: value for path, value in others.items() if path.rpartition(".")[2] != "pad_token_id"}
    if frequencies:
        rope["frequencies"] = frequencies
    return as_json(others), as_json(rope)


def frequencies_of(model: torch.nn.Module) -> list[list[float]]:
    """Return some inverse frequencies of each rotary embedding, in radians per token; equal tables once.

    Of factors that change with the length of the text, those for short texts: the others are the state of a pass.
    """
    found: set[tuple[float, ...]] = set()
    for module in model.modules():
        tables: dict[str, object] = {**vars(module), **dict(module.named_buffers(recurse=False))}
        for name, table in tables.items():
            if not name.endswith("inv_freq") or not isinstance(table, torch.Tensor) or table.is_meta:
                continue
            original = name.removesuffix("inv_freq") + "original_inv_freq"
            if name.endswith("original_inv_freq") or not isinstance(tables.get(original), torch.Tensor):
                flat = table.detach().reshape(-1).double().cpu()
                chosen = flat[
                    torch.linspace(0, flat.numel() - 1, min(_FREQUENCIES, flat.numel()), device=flat.device).long()
                ]
                values = cast("list[float]", chosen.tolist())
                found.add(tuple(float(f"{one:.9g}") for one in values))
    return [list(table) for table in sorted(found)]


def dtypes_of(model: torch.nn.Module) -> str:
    """Return the floating dtypes of a model's parameters."""
    found = {parameter.dtype for parameter in model.parameters() if parameter.dtype.is_floating_point}
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found)) or "none"


def quantisation_of(config: PreTrainedConfig) -> str:
    """Return method and settings of quantisation as JSON, "none" if there is none."""
    settings: Any = getattr(config, "quantization_config", None)
    if settings is None:
        return "none"
    fields = cast("dict[str, Any]", settings if isinstance(settings, dict) else settings.to_dict())
    return as_json(dict(_flat(fields)))


def adapters_of(model: torch.nn.Module) -> str:
    """Return a hash of which of PEFT's adapters act, how strongly, and which are merged; "none" without any."""
    facts = {
        name.replace("_orig_mod.", ""): [
            list(layer.active_adapters), layer.disable_adapters, list(layer.merged_adapters),
            getattr(layer, "scaling", {}),
        ]
        for name, layer in cast("Iterator[tuple[str, Any]]", model.named_modules())
        if hasattr(layer, "merged_adapters")
    }  # fmt: skip
    return blake2b(as_json(facts).encode(), digest_size=32).hexdigest() if facts else "none"


def as_json(fields: Mapping[str, Any]) -> str:
    """Return one text for equal fields."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), default=_told)


def _told(value: object) -> str:
    # Not str of just anything: it may name an address in memory.
    return str(value) if isinstance(value, (torch.dtype, torch.device)) else type(value).__qualname__


def _is_rope(name: str) -> bool:
    return "rope" in name or "rotary" in name


def _flat(fields: Mapping[Any, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields that count by their dotted paths; parameters of rotary embeddings stay together."""
    for key, value in fields.items():
        name = str(key)
        if name in _NO_NUMBERS or name.startswith("_") or value is None:
            continue
        if isinstance(value, dict) and not _is_rope(name):
            yield from _flat(cast("dict[Any, Any]", value), f"{above}{name}.")
        else:
            yield f"{above}{name}", value
