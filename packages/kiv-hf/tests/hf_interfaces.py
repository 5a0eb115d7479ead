"""Other functions under the name "kiv", for tests of what a model might do between the cache and attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import AttentionInterface, AttentionMaskInterface

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


class registered:
    """While it lasts, other functions go by the name "kiv"."""

    def __init__(self, attention: Any = None, mask: Any = None) -> None:
        self.wanted = [(AttentionInterface, attention), (AttentionMaskInterface, mask)]

    def __enter__(self) -> None:
        self.kept = [(interface, interface()["kiv"]) for interface, _ in self.wanted]
        for interface, function in self.wanted:
            if function is not None:
                interface.register("kiv", function)

    def __exit__(self, *_: Any) -> None:
        for interface, function in self.kept:
            interface.register("kiv", function)


def attention_gets(change: Callable[..., Any]) -> registered:
    """Give the attention "kiv" `change(key, value)`, as from a model that adapts them."""
    kiv = AttentionInterface()["kiv"]

    def changed(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        return kiv(module, query, *change(key, value), mask, **kwargs)

    return registered(attention=changed)


def attention_adds(**added: Any) -> registered:
    """Give the attention "kiv" more arguments, as from a model that passes them."""
    kiv = AttentionInterface()["kiv"]

    def more(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any) -> Any:
        return kiv(module, query, key, value, mask, **{**kwargs, **added})

    return registered(attention=more)
