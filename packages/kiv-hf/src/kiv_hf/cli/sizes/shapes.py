"""A pass of a model whose tensors have shapes and no numbers: what its cache then holds, and which modules ran.

Nothing is read but the configuration, and hardly any memory is taken, however large the model is.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, DynamicCache

if TYPE_CHECKING:
    from collections.abc import Collection

    from transformers import PreTrainedConfig

TOKENS = 2
"""Of the pass: one is a decode step, for which some models have other code."""

OTHER_KINDS = (
    ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING", "AutoModelForImageTextToText"),
    ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING", "AutoModelForSpeechSeq2Seq"),
    ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING", "AutoModelForSeq2SeqLM"),
    ("MODEL_FOR_MULTIMODAL_LM_MAPPING", "AutoModelForMultimodalLM"),
)
"""Types of models that take images or sound beside text, and what loads them; not every transformers has the last."""

DTYPE = torch.bfloat16
"""Of the pass: the one that kernels of mixtures of experts take."""

SCALAR, NONZERO = torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default  # noqa: SLF001


@dataclass(frozen=True)
class Traced:
    """A model without numbers, after a pass.

    Attributes
    ----------
    model : Module
        On the meta device, in `DTYPE`.
    cache : DynamicCache
        Of `TOKENS` tokens, or empty.
    ran : modules that took part; None where the pass broke off
    problem : str
        Why it broke off; empty if it did not.
    """

    model: Any
    cache: Any
    ran: Collection[torch.nn.Module] | None
    problem: str


class _Imagined(TorchDispatchMode):
    """Answers code that asks for numbers where there are none: true, or one, and not 0 anywhere."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Carry out an operation of torch."""
        if func is SCALAR and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        if func is NONZERO and args[0].is_meta:
            return torch.empty(args[0].numel(), args[0].ndim, dtype=torch.int64, device="meta")
        return func(*args, **(kwargs or {}))


def build(config: PreTrainedConfig) -> Any:
    """Make the model on the meta device, in evaluation mode.

    Raises
    ------
    ValueError
        transformers has no language model of this type.
    """
    kind: Any = AutoModelForCausalLM
    for mapping, other in () if is_text_model(config) else OTHER_KINDS:
        if type(config) in getattr(transformers, mapping, ()):
            kind = getattr(transformers, other)
            break
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind.from_config(copy.deepcopy(config), dtype=DTYPE).eval()


def is_text_model(config: PreTrainedConfig) -> bool:
    """Tell whether transformers loads it as a causal language model, as ``kiv ask`` does."""
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING


def trace(config: PreTrainedConfig) -> Traced:
    """Pass `TOKENS` tokens through the model.

    Code of some models cannot do without numbers: the pass breaks off, and what is known is the model alone.
    """
    model, cache = build(config), DynamicCache(config=config)
    ran: set[torch.nn.Module] = set()

    def note(module: torch.nn.Module, _: Any) -> None:
        ran.add(module)

    hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
    ids = torch.zeros(1, TOKENS, dtype=torch.int64, device="meta")
    try:
        with torch.no_grad(), torch.device("meta"), _Imagined(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(input_ids=ids, past_key_values=cache, use_cache=True)
    except Exception as error:  # any model's own code; what it did not tell is read from the configuration's fields
        lines = str(error).strip().splitlines() or [""]
        return Traced(model, DynamicCache(config=config), None, f"{type(error).__name__}: {lines[0][:200]}")
    finally:
        for hook in hooks:
            hook.remove()
    return Traced(model, cache, ran, "")
