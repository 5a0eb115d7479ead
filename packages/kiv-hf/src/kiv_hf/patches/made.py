"""KIV versions that are made by a recipe: the class's own code, but for attention of a decoder to its own text."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from .common import additive, attend
from .projections import bart_self_attention, bert_self_attention, mvp_self_attention

Recipe = Callable[[type[torch.nn.Module]], dict[str, Any]]
"""From a class to the methods of its KIV version."""


class Source(NamedTuple):
    """The class a version is made of: its modeling file, and how."""

    file: str
    recipe: Recipe


def scores(base: type[torch.nn.Module], divisor: str) -> dict[str, Any]:
    """Replace `_attn`, which gets exactly what the cache returned and divides scores by the attribute `divisor`."""

    def _attn(
        self: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        output = attend(self, query, key, value, attention_mask, 1.0 / float(getattr(self, divisor)))
        return output.transpose(1, 2), None

    return {"_attn": _attn}


def self_attention(
    base: type[torch.nn.Module],
    method: Callable[..., Any],
    others: tuple[str, ...] = ("encoder_hidden_states", "key_value_states"),
    needs_cache: bool = False,
) -> dict[str, Any]:
    """Replace `forward` by `method`, except where the call is no self-attention of a decoder.

    Parameters
    ----------
    base : type of torch.nn.Module
    method : function
        From the module and the arguments of `forward` to what that returns.
    others : names of arguments
        The call is the class's own affair if one of these is given.
    needs_cache : bool
        So it is without a cache: the class serves an encoder too, whose mask is not causal.
    """
    names = tuple(inspect.signature(base.forward).parameters)[1:]

    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Attend to the text itself, or, as the class does, to or in an encoder."""
        kwargs.update(zip(names, args, strict=False))
        if all(kwargs.get(name) is None for name in others) and not (
            needs_cache and kwargs.get("past_key_values") is None
        ):
            return method(self, **kwargs)
        for name in ("attention_mask", "encoder_attention_mask"):
            if name in kwargs:
                kwargs[name] = additive(kwargs[name], kwargs["hidden_states"])
        return base.forward(self, **kwargs)

    return {"forward": forward}


_bert, _bart = partial(self_attention, method=bert_self_attention), partial(self_attention, method=bart_self_attention)
_speech = partial(_bart, others=("key_value_states", "position_bias"))  # positions have a bias in an encoder alone

SOURCES = {
    "BigBirdSelfAttention": Source("big_bird.modeling_big_bird", _bert),  # its full attention, as in a decoder
    "BlipTextSelfAttention": Source("blip.modeling_blip_text", partial(_bert, needs_cache=True)),
    "CodeGenAttention": Source("codegen.modeling_codegen", partial(scores, divisor="scale_attn")),
    "GPTJAttention": Source("gptj.modeling_gptj", partial(scores, divisor="scale_attn")),
    "GPTNeoXJapaneseAttention": Source(
        "gpt_neox_japanese.modeling_gpt_neox_japanese", partial(scores, divisor="norm_factor")
    ),
    "GitSelfAttention": Source("git.modeling_git", _bert),  # to the text, and to an image's tokens before it
    "MegatronBertSelfAttention": Source("megatron_bert.modeling_megatron_bert", _bert),
    "MvpAttention": Source("mvp.modeling_mvp", partial(self_attention, method=mvp_self_attention)),
    "RemBertSelfAttention": Source("rembert.modeling_rembert", _bert),
    "RoFormerSelfAttention": Source("roformer.modeling_roformer", _bert),
    "SpeechT5Attention": Source("speecht5.modeling_speecht5", _speech),
    "TrOCRAttention": Source("trocr.modeling_trocr", _bart),
    "XGLMAttention": Source("xglm.modeling_xglm", _bart),
}
"""Name of a class -> its modeling file below ``transformers.models``, and the recipe of its KIV version."""


def made(kind: type[torch.nn.Module]) -> type[torch.nn.Module] | None:
    """Return the KIV version of a class that has a recipe, None if it has none."""
    source = SOURCES.get(kind.__name__)
    if source is None or kind.__module__ != f"transformers.models.{source.file}":
        return None
    return _version(kind)


@cache
def _version(kind: type[torch.nn.Module]) -> type[torch.nn.Module]:
    doc = f"`{kind.__name__}` whose attention to the text itself is KIV's."
    return type(
        f"KIV{kind.__name__}", (kind,), {"__module__": __name__, "__doc__": doc, **SOURCES[kind.__name__].recipe(kind)}
    )


def __getattr__(name: str) -> type[torch.nn.Module]:
    """Return the version of this name: a pickled model looks for its classes so."""
    source = SOURCES.get(name.removeprefix("KIV"))
    file = None if source is None else sys.modules.get(f"transformers.models.{source.file}")
    if file is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _version(getattr(file, name.removeprefix("KIV")))
