"""Attention classes for models whose own code does not call transformers' attention interface.

Each module of this package names, in `CLASSES`, the attention classes of one modeling file and their KIV versions. A
version changes how attention is computed and nothing else: it has the weights, names and submodules of its base class.
"""

from __future__ import annotations

from importlib import import_module
from types import MethodType

import torch

MODULES = {
    "transformers.models.big_bird.modeling_big_bird": "big_bird",
    "transformers.models.blip.modeling_blip_text": "blip_text",
    "transformers.models.bloom.modeling_bloom": "bloom",
    "transformers.models.codegen.modeling_codegen": "codegen",
    "transformers.models.falcon.modeling_falcon": "falcon",
    "transformers.models.git.modeling_git": "git",
    "transformers.models.gpt_neo.modeling_gpt_neo": "gpt_neo",
    "transformers.models.gpt_neox_japanese.modeling_gpt_neox_japanese": "gpt_neox_japanese",
    "transformers.models.gptj.modeling_gptj": "gptj",
    "transformers.models.megatron_bert.modeling_megatron_bert": "megatron_bert",
    "transformers.models.mpt.modeling_mpt": "mpt",
    "transformers.models.mvp.modeling_mvp": "mvp",
    "transformers.models.rembert.modeling_rembert": "rembert",
    "transformers.models.roformer.modeling_roformer": "roformer",
    "transformers.models.speecht5.modeling_speecht5": "speecht5",
    "transformers.models.trocr.modeling_trocr": "trocr",
    "transformers.models.xglm.modeling_xglm": "xglm",
}
"""Modeling file of transformers -> module of this package, imported only for a model that needs it."""


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
    if kind.__module__ not in MODULES:
        return None
    return import_module(f".{MODULES[kind.__module__]}", __name__).CLASSES.get(kind)


def _change_class(module: torch.nn.Module, kind: type[torch.nn.Module]) -> None:
    module.__class__ = kind
    # A hook of accelerate (offloaded weights) kept the forward method of the former class.
    if "_old_forward" in vars(module):
        vars(module)["_old_forward"] = MethodType(kind.forward, module)
