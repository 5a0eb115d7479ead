"""The device that the user named: tried before anything is loaded; and what a CPU is slow at."""

from __future__ import annotations

import torch
from kiv_reference.errors import KIVUsageError, refuse


def find_device(name: str) -> str:
    """Return the device that `name` means: "auto" is cuda where there is one.

    Raises
    ------
    KIVUsageError
        torch knows no such device, or cannot put a number on it and take it back.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # A backend that is not there, or not built in, says so in an exception of its own choice.
        torch.ones(1, device=name).item()
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise refuse(
            KIVUsageError,
            "--device must name a device of torch that is there",
            f"{name!r}, which is no device here ({reason})",
            "Try cpu" + (" or cuda." if torch.cuda.is_available() else "."),
        ) from error
    return name


def cpu_kernels(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN has kernels for a dtype on this CPU: without them a prompt is read several times slower.

    True as well where torch comes without oneDNN, of which nothing is known.
    """
    if dtype not in (torch.bfloat16, torch.float16) or not torch.backends.mkldnn.is_available():
        return True
    narrow = "bf16" if dtype == torch.bfloat16 else "fp16"
    return bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{narrow}_supported")())  # as torch asks before it uses them
