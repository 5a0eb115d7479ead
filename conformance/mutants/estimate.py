"""Faults in the estimate: weights of codes, their unit, and the base (SPEC 4.2)."""

from __future__ import annotations

from kiv_reference import estimate, view

from .patching import reworded

WEIGHTS, ESTIMATES = (estimate, "code_weights"), (view, "estimates")


def reweighed(name: str, old: str, new: str) -> None:
    """Register a change of `code_weights`."""
    reworded(name, WEIGHTS, old, new, look="4.2")


HALF, CLAMP, LIMITS = "(MOST_WEIGHT / 2)", ".clamp(-MOST_WEIGHT, MOST_WEIGHT)", ".clamp(SMALLEST, LARGEST)"
reweighed("unit twice as large", HALF, "(MOST_WEIGHT / 4)")
reweighed("unit half as large", HALF, "MOST_WEIGHT")
reweighed("unit that is no power of two", "(2 * torch.frexp(most).mantissa)", "1")
reweighed("unit of another page", "power / (", "power.roll(1, dims=-2) / (")
reweighed("one unit for all pages", ".amax(dim=-1, keepdim=True)", ".nan_to_num().amax(dim=(-2, -1), keepdim=True)")
reweighed("one unit for all members", ".amax(dim=-1, keepdim=True)", ".amax(dim=-1, keepdim=True).amax(dim=0)")
reweighed("unit by the largest signed product", "products.abs()", "products")
reweighed("unit as small as need be", LIMITS, ".clamp(torch.finfo(products.dtype).tiny, LARGEST)")
reweighed("unit as large as need be", LIMITS, ".clamp(SMALLEST, torch.finfo(products.dtype).max)")
reweighed("least unit twice as large", LIMITS, ".clamp(2 * SMALLEST, LARGEST)")
reweighed("largest unit half as large", LIMITS, ".clamp(SMALLEST, LARGEST / 2)")
reweighed("weights that are not rounded", ".round()", "")
reweighed("weights rounded towards zero", ".round()", ".trunc()")
reweighed("weights rounded down", ".round()", ".floor()")
reweighed("halves rounded up", ".round()", ".add(0.5).floor()")
reweighed("weights below 8,192", CLAMP, ".clamp(1 - MOST_WEIGHT, MOST_WEIGHT - 1)")
reweighed("weights of any size", CLAMP, "")
reweighed(
    "products in float64",
    "(products / unit)",
    "((scale * query.double())[..., index.channels] * index.step / unit)",
)
reweighed("weight of the neighbouring channel", "* index.step", "* index.step.roll(1, dims=-1)")
reweighed(
    "query and step multiplied first",
    "(scale * query)[..., index.channels] * index.step",
    "scale * (query[..., index.channels] * index.step)",
)
reworded("base at the middle of the range", ESTIMATES, "torch.zeros_like(", "7 + torch.zeros_like(", look="4.2")
reworded("no base", ESTIMATES, "(scale * (query @ base.T))[..., None] + ", "", look="4.2")
reworded("no scale for the base", ESTIMATES, "scale * (query @ base.T)", "query @ base.T", look="4.2")
reworded(
    "weights for codes from the middle", ESTIMATES, "index.codes.double()", "index.codes.double() - 7.5", look="4.2"
)
reworded("sums of codes in float16", ESTIMATES, "sums.to(", "sums.half().to(", look="4.2")
