"""What is launched otherwise on ROCm than on CUDA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kiv_fast.ops.triton.launch import launch
from kiv_fast.ops.triton.sizes import Sizes


class Kernel:
    """Notes what it is launched with."""

    arg_names = ("x", "TILE")

    def __getitem__(self, grid: tuple[int, ...]) -> Kernel:
        return self

    def __call__(self, **given: Any) -> None:
        self.given = given


@pytest.mark.parametrize("hip", [None, "6.4"])
def test_options_of_the_other_compiler_are_left_out(hip: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    kernel = Kernel()
    launch(kernel, (1,), {"x": 1, "TILE": 2, "y": 3}, TILE=4, num_warps=8, maxnreg=128)
    assert kernel.given == {"x": 1, "TILE": 4, "num_warps": 8} | ({} if hip else {"maxnreg": 128})


@pytest.mark.parametrize(
    ("dtype", "groups", "hip", "tile", "large"),
    [
        (torch.bfloat16, 8, None, 64, False),
        (torch.bfloat16, 8, "6.4", 32, False),
        (torch.float32, 8, None, 32, True),
        (torch.bfloat16, 9, None, 32, True),
        (torch.bfloat16, 9, "6.4", 32, True),
    ],
)
def test_fewer_tokens_are_attended_together(
    dtype: torch.dtype, groups: int, hip: str | None, tile: int, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    sizes = Sizes(1, 2, groups, 64, 64, dtype, 16, 512, 4096, 1024, (4, 2560), True, True, False)
    assert (sizes.tile, sizes.large) == (tile, large)
    assert sizes.parts == (1, 1 + 2560 // tile, 1 + 3584 // tile, 2 + 3584 // tile)
