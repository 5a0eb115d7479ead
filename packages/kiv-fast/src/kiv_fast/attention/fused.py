"""What torch has of fused attention that gives a log-sum-exp, without which tiles cannot be merged.

`scaled_dot_product_attention` chooses among the same operations, and gives none. They differ by device, dtype, widths
and version, and so do the shapes of what they return: `choice` tries them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch

Attention = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def _operation(name: str) -> Any:
    return getattr(torch.ops.aten, f"_scaled_dot_product_{name}")


class Kind(NamedTuple):
    """What calls of fused attention have in common; the soft cap is the model's, or None."""

    device: torch.device
    dtype: torch.dtype
    key_width: int
    value_width: int
    softcap: float | None = None


class Way(NamedTuple):
    """An operation of torch.

    Attributes
    ----------
    serves : callable
        Whether it may serve a kind of calls; the trial has the last word.
    attend : callable
        Of query, key, value ``[B, H, T, width]``, causal, scale and soft cap: output ``[B, H, TQ, DV]``, and
        log-sum-exp ``[B, H, TQ]``, perhaps in another shape, or padded at the end.
    alike : bool
        Whether keys and values must be of one width.
    multiple : int
        Of which widths must be. Zeros make up what is missing: they change neither a product nor a sum.
    """

    name: str
    serves: Callable[[Kind], bool]
    attend: Attention
    alike: bool
    multiple: int

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        causal: bool,
        scale: float,
        softcap: float | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend: output ``[B, H, TQ, DV]`` in the dtype given, log-sum-exp ``[B, H, TQ]`` in that of computation."""
        width = value.shape[3]
        widths = (max(query.shape[3], width),) * 2 if self.alike else (query.shape[3], width)
        keys, values = (-(-n // self.multiple) * self.multiple for n in widths)
        query, key, value = _widened(query, keys), _widened(key, keys), _widened(value, values)
        output, mass = self.attend(query, key, value, causal, scale, softcap)
        return output[..., :width], mass.reshape(*query.shape[:2], -1)[..., : query.shape[2]]


def _widened(tensor: torch.Tensor, width: int) -> torch.Tensor:
    missing = width - tensor.shape[-1]
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


def _for_cpu(query: Any, key: Any, value: Any, causal: bool, scale: float, _: float | None) -> Any:
    return _operation("flash_attention_for_cpu")(query, key, value, 0.0, causal, scale=scale)


def _flash(query: Any, key: Any, value: Any, causal: bool, scale: float, _: float | None) -> Any:
    return _operation("flash_attention")(query, key, value, 0.0, causal, scale=scale)[:2]


def _cudnn(query: Any, key: Any, value: Any, causal: bool, scale: float, _: float | None) -> Any:
    return _operation("cudnn_attention")(query, key, value, None, True, 0.0, causal, scale=scale)[:2]


def _efficient(query: Any, key: Any, value: Any, causal: bool, scale: float, _: float | None) -> Any:
    return _operation("efficient_attention")(query, key, value, None, True, 0.0, causal, scale=scale)[:2]


def _overrideable(query: Any, key: Any, value: Any, causal: bool, scale: float, _: float | None) -> Any:
    attend = _operation("fused_attention_overrideable")
    return attend(query, key, value, None, 0.0, causal, scale=scale)[:2]


VERSIONS = 256
"""Of FlexAttention, at most: for each soft cap, dtype and device, causal or not, of one token or head, or of many."""


@cache
def compiled_flex() -> Any:
    """Compile FlexAttention, at its first use; as it is, it would write the logits out."""
    from torch.nn.attention import flex_attention

    flex: Any = flex_attention.flex_attention  # some of its forms are deprecated

    def attend(*call: Any, **modifiers: Any) -> Any:  # whose versions are not counted with those that others compile
        return flex(*call, **modifiers)

    compiled: Any = torch.compile(attend, dynamic=True, fullgraph=True)
    config: Any = import_module("torch._dynamo.config")
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"

    def attend_compiled(*call: Any, **modifiers: Any) -> Any:
        with config.patch({limit: VERSIONS}):  # beyond torch's own limit, of eight, a prompt would break off
            return compiled(*call, **modifiers)

    return attend_compiled


@cache  # a new function would be compiled anew
def capping(softcap: float, causal: bool) -> Any:
    """Return what caps a scaled score (SPEC 8.1), and hides later tokens."""

    def score(score: Any, batch: Any, head: Any, at: Any, token: Any) -> Any:
        capped = torch.tanh(score / softcap) * softcap
        return torch.where(at >= token, capped, -torch.inf) if causal else capped

    return score


def _flex(query: Any, key: Any, value: Any, causal: bool, scale: float, softcap: float | None) -> Any:
    from torch.nn.attention import flex_attention as flex

    # From torch 2.9 on `return_aux`, up to there `return_lse`.
    request: Any = getattr(flex, "AuxRequest", None)
    asked: dict[str, Any] = {"return_lse": True} if request is None else {"return_aux": request(lse=True)}
    assert softcap is not None, "without one there are faster ways"
    score = capping(softcap, causal)
    output, found = compiled_flex()(query, key, value, score_mod=score, scale=scale, **asked)
    return output, found if request is None else found.lse


HALVES = (torch.bfloat16, torch.float16)


def _uncapped_half(kind: Kind) -> bool:
    return kind.softcap is None and kind.dtype in HALVES


def _flash_serves(kind: Kind) -> bool:
    return _uncapped_half(kind) and kind.key_width == kind.value_width <= 256


def _uncapped_single(kind: Kind) -> bool:
    return kind.softcap is None and kind.dtype in (*HALVES, torch.float32)


def _uncapped(kind: Kind) -> bool:
    return kind.softcap is None


def _flex_serves(kind: Kind) -> bool:
    return kind.softcap is not None and kind.dtype in (*HALVES, torch.float32)


WAYS: dict[str, tuple[Way, ...]] = {
    # ROCm's devices, too, are called "cuda".
    "cuda": (
        Way("flash", _flash_serves, _flash, True, 8),
        Way("cuDNN", _uncapped_half, _cudnn, False, 8),
        Way("efficient", _uncapped_single, _efficient, False, 8),
        Way("FlexAttention", _flex_serves, _flex, False, 8),
    ),
    "xpu": (
        Way("flash", _flash_serves, _flash, True, 8),
        Way("overrideable", _uncapped_single, _overrideable, False, 8),
        Way("FlexAttention", _flex_serves, _flex, False, 8),
    ),
    # What MPS has gives weights, and no log-sum-exp.
}
"""By type of device, in the order in which they are tried."""

CPU = Way("flash for cpu", _uncapped, _for_cpu, True, 1)
"""In the dtype of computation, by what every build of torch has: not tried."""
