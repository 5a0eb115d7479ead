"""The decode step of a layer in few launches, for devices that Triton compiles for: CUDA and ROCm."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from ..decoding import Decode, Decoded, Take

KINDS = (torch.float32, torch.bfloat16, torch.float16)


def interpreted() -> bool:
    """Tell whether Triton's interpreter runs the kernels, on the CPU: to look for mistakes, not to compute."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(device: torch.device) -> str | None:
    """Say why a device cannot be served; None if it can."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if interpreted() or device.type == "cuda":
        return None
    return f"Triton does not compile for {device.type!r}"


class TritonDecoder:
    """The decode step in Triton (`Decoder`)."""

    name = "triton"

    def step_bytes(self, asked: Decode) -> int:
        """Count the bytes that `decode` takes for itself (`Decoder.step_bytes`)."""
        from .sizes import bytes_of, sizes_of

        return bytes_of(sizes_of(asked))

    def append(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        hot: tuple[torch.Tensor, torch.Tensor],
        lengths: tuple[int, int, int, int],
        counts: torch.Tensor,
        odd: torch.Tensor,
    ) -> None:
        """Write one token of each sequence (`Decoder.append`)."""
        from .decode import append_token

        append_token(key, value, hot, lengths, counts, odd)

    def decode(self, asked: Decode, take: Take) -> Decoded:
        """Attend one query of each sequence (`Decoder.decode`)."""
        from .decode import decode  # imports Triton, which takes a second: only where it is wanted

        # The interpreter has no numbers of bfloat16, only their bits.
        return decode(asked, take, interpreted() and asked.query.dtype == torch.bfloat16)
