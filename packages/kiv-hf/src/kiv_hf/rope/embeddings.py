"""The rotary embeddings of a model: how they are made to heed a length, and what dynamic ones remember."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .limits import limits
from .told import told_to


def rotary_embeddings(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the rotary embeddings of a model's text part whose factors depend on the length."""
    text = model.config.get_text_config(decoder=True)
    return [module for module in model.modules() if hasattr(module, "rope_type") and _depends(module, text)]


def _depends(module: Any, text: PreTrainedConfig) -> bool:
    own = getattr(module, "config", None)
    # By type of model: the positions of a vision tower are patches.
    return isinstance(own, PreTrainedConfig) and own.model_type == text.model_type and bool(limits(own))


def listen(module: torch.nn.Module) -> None:
    """Make a rotary embedding heed `rope_for_length`, for ever: a hook that comes and goes would trip other threads.

    It is shown one position more, the text's last, and what it returns for that is taken away. So the module itself
    chooses the factors, whatever its way: inverse frequencies, attention scaling, or the mscale of PhiMoE.
    """
    if _add_last not in module._forward_pre_hooks.values():  # pyright: ignore[reportPrivateUsage]
        module.register_forward_pre_hook(_add_last, with_kwargs=True)
        module.register_forward_hook(_drop_last)


def _add_last(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tokens = told_to(module)
    if tokens == 0:
        return None
    positions: torch.Tensor = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
    longer = torch.cat([positions, torch.full_like(positions[..., :1], tokens - 1)], dim=-1)
    if "position_ids" in kwargs:
        return args, {**kwargs, "position_ids": longer}
    return (args[0], longer, *args[2:]), kwargs


def _drop_last(module: torch.nn.Module, _: Any, output: Any) -> Any:
    if told_to(module) == 0:
        return None
    return output[..., :-1, :] if isinstance(output, torch.Tensor) else tuple(part[..., :-1, :] for part in output)


def state_of(module: Any) -> dict[str, Any]:
    """Return what dynamic factors remember; others are chosen anew in each pass."""
    if not any(limit.dynamic for limit in limits(module.config)):
        return {}
    names: list[str] = [*vars(module), *module._buffers]
    return {name: getattr(module, name) for name in names if name.endswith(("inv_freq", "max_seq_len_cached"))}


def start_afresh(module: Any) -> None:
    """Make dynamic factors forget the lengths they have seen."""
    state = state_of(module)
    for name, value in state.items():
        original = state.get(name.removesuffix("inv_freq") + "original_inv_freq")
        if name.endswith("max_seq_len_cached"):
            setattr(module, name, module.original_max_seq_len)
        elif original is not None:
            setattr(module, name, original.to(value.device, copy=True))


def restore(module: Any, before: dict[str, Any]) -> None:
    """Bring back what `state_of` returned."""
    for name in state_of(module).keys() - before.keys():  # of a kind of layer that grew for the first time
        delattr(module, name)
    for name, value in before.items():
        # The model may have moved meanwhile.
        setattr(module, name, value.to(getattr(module, name).device) if name.endswith("inv_freq") else value)
