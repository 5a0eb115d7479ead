"""Where the tensors of one module are: in it, in the quantisation that wraps them, or offloaded by accelerate."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping


def own_tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and the persistent buffers of a module without those of its parts."""
    inside: Any = module
    transient: set[str] = inside._non_persistent_buffers_set  # noqa: SLF001
    found: dict[str, torch.Tensor | None] = dict(inside._parameters)  # noqa: SLF001
    found |= {name: buffer for name, buffer in inside._buffers.items() if name not in transient}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def contents(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return all that decides what a module computes: its tensors, and what quantisation keeps beside them.

    What is offloaded is taken from where it lies; what is nowhere to be found stays on the device "meta".
    """
    found: dict[str, Any] = {}
    own = own_tensors(module)
    if getattr(own.get("weight"), "quant_state", None) is not None:
        found = own | _four_bits(own["weight"])
    else:
        try:
            # Not the parameters alone: layers of 8 bits add their scales here.
            module._save_to_state_dict(found, "", keep_vars=True)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        except NotImplementedError:
            found = dict[str, Any](own)
    offloaded = _offloaded(module)
    for name, tensor in found.items():
        if isinstance(tensor, torch.Tensor) and tensor.is_meta and name in offloaded:
            found[name] = offloaded[name]
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def anchor(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> object:
    """Return the object that is another one where this tensor of a module was replaced.

    Of offloaded weights, which get a new parameter in each forward pass, it is the tensor in RAM or, of those on disk,
    accelerate's index of files.
    """
    if not tensor.is_meta:
        return tensor
    weights: Any = _offloaded(module)
    if name not in weights:
        return tensor
    while hasattr(weights, "dataset"):
        name, weights = weights.prefix + name, weights.dataset
    in_ram = getattr(weights, "state_dict", weights)
    return in_ram[name] if name in in_ram else weights  # noqa: SIM401


def _offloaded(module: torch.nn.Module) -> Mapping[str, torch.Tensor]:
    hook: Any = getattr(module, "_hf_hook", None)
    for one in (hook, *getattr(hook, "hooks", ())):
        if getattr(one, "offload", False) and one.weights_map is not None:
            return one.weights_map
    return {}


def _four_bits(weight: Any) -> dict[str, torch.Tensor]:
    """Return a parameter of bitsandbytes' 4 bits and its scales, alike before and after the first forward pass.

    On processors with AVX512-BF16 that pass packs the weights in another order and rounds the scales to bfloat16, in
    place. So the order is the one before, and the scales are rounded.
    """
    state = weight.quant_state
    data, scales = weight.data, state.absmax
    if getattr(state, "packing_format_for_cpu", False):
        from bitsandbytes import functional

        unpack = cast("Any", functional)._convert_weight_packed_for_cpu_inverse  # noqa: SLF001
        data, scales = unpack(data, copy.copy(state))[0], scales.T  # a copy, because it is changed
    elif state.nested:
        from bitsandbytes.functional import dequantize_blockwise

        scales = dequantize_blockwise(scales, state.state2) + state.offset
    blocks = torch.tensor([state.blocksize, *state.shape], device="cpu")
    scales = scales.reshape(-1).to(torch.bfloat16)
    return {"weight": data, "weight.scales": scales, "weight.levels": state.code, "weight.blocks": blocks}
