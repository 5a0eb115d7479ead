"""Attention classes for models whose own code does not call transformers' attention interface.

A KIV version changes how attention is computed and nothing else: it has the weights, names and submodules of its base
class. Most are made by a recipe (`made`); a module of a model's name has, in `CLASSES`, those that are written out.
"""

from __future__ import annotations

from importlib import import_module
from types import MethodType
from typing import TYPE_CHECKING

from .made import made

if TYPE_CHECKING:
    import torch

WRITTEN = ("bloom", "falcon", "gpt_neo", "mpt")
"""Models whose versions are written out, each in a module of its name, which is imported only for one that needs it."""


def patch_attention(model: torch.nn.Module) -> int:
    """Give every attention module of `model` that bypasses the attention interface its KIV version.

    Only this instance of the model changes, and only its attention modules.

    Returns
    -------
    int
        Number of modules that have a KIV version now.
    """
    patched = 0
    for module in model.modules():
        kind = type(module)
        if kind.__module__.startswith(__name__):
            patched += 1
        elif (version := kiv_version(kind)) is not None:
            _change_class(module, version)
            patched += 1
    return patched


def kiv_version(kind: type[torch.nn.Module]) -> type[torch.nn.Module] | None:
    """Return the KIV version of an attention class, or None if it has none."""
    model, _, file = kind.__module__.removeprefix("transformers.models.").partition(".")
    if model in WRITTEN and file == f"modeling_{model}":
        return import_module(f".{model}", __name__).CLASSES.get(kind)
    return made(kind)


def _change_class(module: torch.nn.Module, kind: type[torch.nn.Module]) -> None:
    module.__class__ = kind
    # A hook of accelerate (offloaded weights) kept the forward method of the former class.
    if "_old_forward" in vars(module):
        vars(module)["_old_forward"] = MethodType(kind.forward, module)
