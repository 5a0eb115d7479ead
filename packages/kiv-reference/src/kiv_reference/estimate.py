"""Estimates of scores from codes: sums of whole numbers, which every implementation has alike (SPEC 4.2)."""

from __future__ import annotations

import torch

from .index import PageIndex, approximate_keys

MOST_WEIGHT = 2.0**13
"""No weight is larger; the largest of a page is at least half of it, if its product is within the limits below."""

SMALLEST, LARGEST = 2.0**-114, 2.0**127
"""The unit is chosen as if the largest product lay between these: it is at least 2^-126, at most 2^115."""


def code_weights(query: torch.Tensor, index: PageIndex, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Weigh the codes of I pages for a query: whole weights ``[..., I, M]`` and their unit ``[..., I, 1]``.

    Parameters
    ----------
    query : [..., D], in the dtype of computation
    index : PageIndex
        Of I pages.
    """
    products = (scale * query)[..., index.channels] * index.step
    most = products.abs().amax(dim=-1, keepdim=True).clamp(SMALLEST, LARGEST)
    power = most / (2 * torch.frexp(most).mantissa)  # the largest power of two that is not above, exactly
    unit = power / (MOST_WEIGHT / 2)
    return (products / unit).round().clamp(-MOST_WEIGHT, MOST_WEIGHT), unit  # halves go to the even one


def estimates(
    query: torch.Tensor, index: PageIndex, scale: float, given: tuple[torch.Tensor, torch.Tensor] | None = None
) -> torch.Tensor:
    """Estimate scores ``[..., I * P]`` of the tokens of I pages for ``query [..., D]``, in the dtype of computation.

    `given` are weights and unit that the operations of another dtype gave, for a comparison.
    """
    weights, unit = code_weights(query, index, scale) if given is None else given
    sums = torch.einsum("...im,ipm->...ip", weights.double(), index.codes.double())  # of whole numbers: exact
    first = torch.zeros_like(index.codes[:, :1])
    base = approximate_keys(first, index.channels, index.centre, index.step, index.mean)[:, 0]  # keys of code 0
    return ((scale * (query @ base.T))[..., None] + unit * sums.to(query.dtype)).flatten(-2)
