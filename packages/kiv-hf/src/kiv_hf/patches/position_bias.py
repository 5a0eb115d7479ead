"""A bias that depends on the key's position alone, as further channels of keys and queries (ALiBi).

Scores are scale * q·k + b_j. With ``k' = [k, b_j]`` and ``q' = [q, 1 / scale]`` that is scale * q'·k', so that the bias
enters page scores, token scores and logits alike (SPEC 4.2, 4.5, 5.1) and no store needs to know of it.
"""

from __future__ import annotations

import torch


def with_position_bias(
    query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Append the bias to queries and keys.

    Numbers that the dtype cannot hold are split into a sum of up to three of that dtype, so that half precision loses
    no more of the bias than of anything else.

    Parameters
    ----------
    query : [B, H, n, D]
    key : [B, H, n, D]
    bias : [B or 1, H, n], any float dtype
        Bias of each new key, on the scale of logits.
    scale : float > 0
        Factor on query · key.

    Returns
    -------
    query, key : [B, H, n, D + extra]
    """
    weights = _parts(torch.tensor(1.0 / scale, dtype=torch.float64, device=query.device), query.dtype)
    biases = _parts(bias, key.dtype)
    # The product of two small parts is below the rounding of the others.
    pairs = [(w, b) for i, w in enumerate(weights) for j, b in enumerate(biases) if i + j < len(weights)]
    ones = query.new_ones(query.shape[:-1])
    more_query = torch.stack([ones * weight for weight, _ in pairs], dim=-1)
    more_key = torch.stack([part.expand(key.shape[:-1]) for _, part in pairs], dim=-1)
    return torch.cat([query, more_query], dim=-1), torch.cat([key, more_key], dim=-1)


def _parts(number: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Split `number` into a sum of tensors of `dtype`, the largest first: two of float32, three of half precision."""
    count = {torch.float64: 1, torch.float32: 2}.get(dtype, 3)
    rest, parts = number.double(), list[torch.Tensor]()
    for _ in range(count):
        part = rest.to(dtype)
        rest = rest - part.double()
        parts.append(part)
    return parts
