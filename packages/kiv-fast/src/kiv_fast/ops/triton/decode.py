"""A decode step of one layer, all sequences at once, in seven launches that no host waits for (SPEC 4, 5).

Together with the launch that appends the token they are eight. What is selected, which heads widen and how many tokens
there are stays on the device: grids and arguments depend on what there is room for alone.
"""

# pyright: reportUnknownVariableType=false
# Kernels have no types but Triton's own.

from __future__ import annotations

from typing import Any

import torch

from ...device.kept import WAYS, Kept
from ..decoding import Decode, Decoded, Take
from .kernels.append import append
from .kernels.attend import attend
from .kernels.choose import choose
from .kernels.combine import combine
from .kernels.read import read
from .kernels.scan import rank, scan
from .launch import launch
from .results import Results, results_bytes, results_in
from .sizes import PART, Sizes, buffers_of, divided, power, sizes_of


def append_token(
    key: torch.Tensor,
    value: torch.Tensor,
    hot: tuple[torch.Tensor, torch.Tensor],
    lengths: tuple[int, int, int, int],
    counts: torch.Tensor,
    odd: torch.Tensor,
) -> None:
    """Write one token of each sequence, ``[B, H, 1, D]``, to its place in the hot window (`Decoder.append`)."""
    batch, heads, _, width = key.shape
    given = {
        "new_k": key,
        "new_v": value,
        "hot_k": hot[0],
        "hot_v": hot[1],
        "counts_ptr": counts,
        "odd_ptr": odd,
        "key_b": key.stride(0),
        "key_h": key.stride(1),
        "value_b": value.stride(0),
        "value_h": value.stride(1),
        "HOT": hot[0].shape[2],
    }
    given |= zip(("sinks", "hot", "begin", "pages"), lengths, strict=True)
    sizes = {"H": heads, "D": width, "DV": value.shape[3], "DP": power(width), "DVP": power(value.shape[3])}
    launch(append, (batch * heads,), given | sizes)


def decode(asked: Decode, take: Take, wide: bool) -> Decoded:
    """Attend one query of each sequence.

    Parameters
    ----------
    take : Take
        Memory for the step; what is filled at first is again as it was when the step has ended.
    wide : bool
        Whether 16-bit numbers are widened before every product, and rounded at the end by torch: the interpreter cuts
        them off.
    """
    sizes = sizes_of(asked)
    memory = torch.empty(results_bytes(sizes, wide), dtype=torch.uint8, device=asked.query.device)
    results = results_in(memory, sizes, wide)
    run(asked, sizes, take, results, wide)
    return results.decoded(asked, sizes)


def run(asked: Decode, sizes: Sizes, take: Take, results: Results, wide: bool) -> None:
    """Launch a step whose results go to memory that is given."""
    given: dict[str, Any] = {f"{name}_ptr": take(name, *buffer) for name, buffer in buffers_of(sizes).items()}
    given |= sizes.compiled(wide) | {
        "q_ptr": asked.query,
        "odd_ptr": asked.odd,
        "id_ptr": asked.ids,
        "counts_ptr": asked.counts,
        "scale": asked.scale,
        "out_ptr": results.out,
        "share_ptr": results.share,
        "hits_ptr": results.hits,
        "at_ptr": results.at,
        "chosen_ptr": results.chosen,
        "wide_ptr": results.wide,
        "room": sizes.pages,
        "candidates": sizes.candidates,
        "width": sizes.most,
        "want": sizes.selected,
    }
    given["key_ptr"], given["value_ptr"] = asked.rows or asked.hot
    _keep(asked.kept, sizes, given)
    if asked.index is None:
        given |= dict.fromkeys(_RETRIEVES)
        _attend(asked, sizes, given, parts=0)
        return
    _retrieve(asked, asked.index, sizes, given)
    _attend(asked, sizes, given, parts=0 if asked.kept is None else divided(sizes.most, PART))


_RETRIEVES = tuple(f"{name}_ptr" for name in ("mean", "raw", "fade", "estimate", "top", "seen", "count", "done"))
_KEEPS = ["key_table", "key_kept", "value_table", "value_kept", "use_ptr", "hit_ptr"]
_MISSES = ["key_aside_ptr", "key_slot_ptr", "value_aside_ptr", "value_slot_ptr"]
"""What kernels are given that only some steps have."""


def _keep(kept: Kept | None, sizes: Sizes, given: dict[str, Any]) -> None:
    """Tell where rows are that the device keeps."""
    if kept is None:
        given |= dict.fromkeys((*_KEEPS, *_MISSES)) | {"key_sets": 0, "value_sets": 0}
        return
    for name, (table, rows) in (("key", kept.keys), ("value", kept.values)):
        given |= {f"{name}_table": table, f"{name}_kept": rows, f"{name}_sets": rows.shape[1] // WAYS}
    given |= dict.fromkeys(() if sizes.retrieves else _MISSES) | {"use_ptr": kept.use}


def _retrieve(asked: Decode, index: tuple[torch.Tensor, ...], sizes: Sizes, given: dict[str, Any]) -> None:
    """Estimate, choose, read and select; once more where a head widens."""
    names = ("code_ptr", "channel_ptr", "step_ptr", "base_ptr", "mean_ptr")
    given |= dict(zip(names, index, strict=True)) | {"first": 3 * sizes.candidates // 4, "MAX": asked.group_max}
    if not asked.tail:
        given["mean_ptr"] = None
    words, grid, tokens = index[0].shape[3], sizes.batch * sizes.heads, sizes.tokens
    tile = power(sizes.page_tokens, most=256)
    parts = sizes.pages * divided(sizes.page_tokens, tile), grid
    launch(scan, parts, given, W=4 * words, WB=power(words, 2, 8), BT=tile)
    tile = power(tokens, most=1024)
    launch(rank, (divided(tokens, tile), grid), given, BT=tile, num_warps=8)
    launch(choose, (divided(tokens, tile), grid), given, BT=tile, TILE=power(given["LIST"], most=512), num_warps=16)
    # On AMD more would spill.
    channels = 32 if torch.version.hip is not None and sizes.key_width > 256 else given["BD"]
    for wider in (False, True):
        tile = power(sizes.most, most=2048)
        blocks = divided(tokens, sizes.block), grid
        launch(read, blocks, given, BD=channels, TILE=tile, WIDER=wider, num_warps=8, maxnreg=128)


def _attend(asked: Decode, sizes: Sizes, given: dict[str, Any], parts: int) -> None:
    """Attend everything that counts, and merge; as many programs of each head put into the cache what was missed."""
    ends = dict(zip("ABCE", sizes.parts, strict=True))
    given |= ends | dict(zip(("sink_k", "sink_v", "hot_k", "hot_v"), (*asked.sinks, *asked.hot), strict=True))
    given |= {
        "SINKS": asked.sinks[0].shape[2],
        "HOT": asked.hot[0].shape[2],
        "learned_ptr": asked.sink_logits,
        "learned_b": 0 if asked.sink_logits is None else asked.sink_logits.stride(0),
        "learned_h": 0 if asked.sink_logits is None else asked.sink_logits.stride(1),
        "softcap": asked.softcap or 1.0,
        "CAP": asked.softcap is not None,
        "BT": sizes.tile,
    }
    grid = sizes.batch * sizes.heads
    launch(attend, (ends["E"], grid), given, num_warps=8 if sizes.large else 4)  # where 4 would spill
    ends = grid * (sizes.groups + parts), divided(sizes.value_width, given["BV"])
    launch(combine, ends, given, lanes=grid, parts=parts, PART=PART)
