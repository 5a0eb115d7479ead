"""The one place from which kernels are launched: tests count launches here, and record what to compile."""

from __future__ import annotations

from typing import Any

import torch


def launch(kernel: Any, grid: tuple[int, ...], given: dict[str, Any], **more: Any) -> None:
    """Begin to run a kernel on the current device.

    Parameters
    ----------
    given : dict
        Arguments by name, among them those of the kernel.
    more
        Others, which come first, and options of Triton; those that only CUDA's compiler knows go nowhere else.
    """
    if torch.version.hip is not None:
        more.pop("maxnreg", None)
    kernel[grid](**{name: given[name] for name in kernel.arg_names if name not in more}, **more)
