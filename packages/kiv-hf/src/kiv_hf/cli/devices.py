"""The device that the user named: tried before anything is loaded."""

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
