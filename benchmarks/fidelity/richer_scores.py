"""Page scores from richer or smaller summaries than mean and spread: what was tried to come nearer to the ceiling."""

from __future__ import annotations

from typing import Literal

import torch

from .scene import Scene
from .scores import BF16_BYTES, PageScore, dot, mean_spread, weigh_spread


def mean_plus_deviation(weight: float) -> PageScore:
    """q·mean + weight * sqrt(Σ q² var): the spread of a sum of independent channels, not of aligned ones."""

    def score(scene: Scene, page_tokens: int) -> torch.Tensor:
        keys = scene.paged_keys(page_tokens)
        variance = keys.var(dim=2, unbiased=False)
        deviation = torch.einsum("hqgd,hnd->hqgn", scene.query.square(), variance).sqrt()
        return dot(scene, keys.mean(dim=2)) + weight * scene.scale * deviation

    return PageScore(f"mean + {weight:g} deviation", score, 2 * BF16_BYTES)


def mean_plus_average_spread(weight: float) -> PageScore:
    """q·mean + weight * Σ|q|·mean |k − mean|: the average deviation of a channel in place of the largest."""

    def score(scene: Scene, page_tokens: int) -> torch.Tensor:
        keys = scene.paged_keys(page_tokens)
        mean = keys.mean(dim=2)
        return dot(scene, mean) + weight * weigh_spread(scene, (keys - mean[:, :, None]).abs().mean(dim=2))

    return PageScore(f"mean + {weight:g} average spread", score, 2 * BF16_BYTES)


def _principal(keys: torch.Tensor) -> torch.Tensor:
    """Unit principal direction ``[H, N, D]`` of the keys of each page, by power iteration from the farthest key."""
    centred = keys - keys.mean(dim=2, keepdim=True)
    far = centred.norm(dim=3).argmax(dim=2)
    direction = centred.gather(2, far[:, :, None, None].expand(-1, -1, 1, keys.shape[3]))[:, :, 0]
    for _ in range(8):
        weight = torch.einsum("hnpd,hnd->hnp", centred, direction)
        direction = torch.nn.functional.normalize(torch.einsum("hnpd,hnp->hnd", centred, weight), dim=2)
    return direction


def mean_plus_direction(weight: float, spread_weight: float) -> PageScore:
    """q·mean + weight * |q·u| + spread_weight * Σ|q|·residual spread, u the principal direction times its deviation."""

    def score(scene: Scene, page_tokens: int) -> torch.Tensor:
        keys = scene.paged_keys(page_tokens)
        mean, direction = keys.mean(dim=2), _principal(keys)
        centred = keys - mean[:, :, None]
        along = torch.einsum("hnpd,hnd->hnp", centred, direction)
        deviation = along.square().mean(dim=2).sqrt()[..., None] * direction
        found = dot(scene, mean) + weight * dot(scene, deviation).abs()
        if spread_weight:
            residual = (centred - along[..., None] * direction[:, :, None]).abs().amax(dim=2)
            found = found + spread_weight * weigh_spread(scene, residual)
        return found

    vectors = 3 if spread_weight else 2
    return PageScore(f"mean + {weight:g} direction + {spread_weight:g} spread", score, vectors * BF16_BYTES)


Split = Literal["principal", "order"]


def _halves(keys: torch.Tensor, split: Split) -> torch.Tensor:
    """Share of each token in the first of two anchors, 0 or 1, ``[H, N, P]``."""
    if split == "order":
        first = torch.arange(keys.shape[2]) < keys.shape[2] // 2
        return first.float().expand(keys.shape[:3])
    centred = keys - keys.mean(dim=2, keepdim=True)
    return (torch.einsum("hnpd,hnd->hnp", centred, _principal(keys)) > 0).float()


def two_anchors(split: Split, weight: float, shared: bool) -> PageScore:
    """The better of two anchors: means of the two parts of a page, each with its spread, or with a shared one.

    Parameters
    ----------
    split : "principal" or "order"
        By the sign along the principal direction, or the first and the second half of the page.
    weight : float
        Weight of the spread around the own anchor; 0 needs no spread.
    shared : bool
        One spread for both anchors: the larger in each channel.
    """

    def score(scene: Scene, page_tokens: int) -> torch.Tensor:
        keys = scene.paged_keys(page_tokens)
        first = _halves(keys, split)
        found: list[torch.Tensor] = []
        spreads: list[torch.Tensor] = []
        for part in (first, 1 - first):
            count = part.sum(dim=2)[..., None]
            mean = torch.einsum("hnp,hnpd->hnd", part, keys) / count.clamp(min=1)
            spread = ((keys - mean[:, :, None]).abs() * part[..., None]).amax(dim=2)
            spreads.append(spread)
            empty = (count[..., 0] == 0)[:, None, None]
            found.append(dot(scene, mean).masked_fill(empty, -torch.inf))
        if weight == 0:
            return torch.maximum(*found)
        if shared:
            return torch.maximum(*found) + weight * weigh_spread(scene, torch.maximum(*spreads))
        pairs = zip(found, spreads, strict=True)
        return torch.maximum(*(mean + weight * weigh_spread(scene, spread) for mean, spread in pairs))

    vectors = 2 if weight == 0 else 3 if shared else 4
    kind = "" if weight == 0 else f" + {weight:g} {'shared' if shared else 'own'} spread"
    return PageScore(f"two anchors by {split}{kind}", score, vectors * BF16_BYTES)


def sub_pages(parts: int, weight: float, shared: bool) -> PageScore:
    """The best of `parts` equal runs of a page: a mean each, and the spread around it, own or shared."""

    def score(scene: Scene, page_tokens: int) -> torch.Tensor:
        keys = scene.paged_keys(page_tokens).unflatten(2, (parts, -1))  # [H, N, parts, p, D]
        mean = keys.mean(dim=3)
        found = dot(scene, mean.flatten(1, 2)).unflatten(3, (-1, parts))  # [H, Q, G, N, parts]
        if weight == 0:
            return found.amax(dim=4)
        spread = (keys - mean[:, :, :, None]).abs().amax(dim=3)  # [H, N, parts, D]
        if shared:
            return found.amax(dim=4) + weight * weigh_spread(scene, spread.amax(dim=2))
        return (found + weight * weigh_spread(scene, spread.flatten(1, 2)).unflatten(3, (-1, parts))).amax(dim=4)

    vectors = parts if weight == 0 else parts + 1 if shared else 2 * parts
    kind = "" if weight == 0 else f" + {weight:g} {'shared' if shared else 'own'} spread"
    return PageScore(f"{parts} sub-page means{kind}", score, vectors * BF16_BYTES)


Scale = Literal["vector", "channel"]


def quantise(vectors: torch.Tensor, bits: int, scale: Scale, run: int, signed: bool) -> torch.Tensor:
    """Round ``vectors [H, N, D]`` to `bits` and back.

    Parameters
    ----------
    scale : "vector" or "channel"
        One step for each vector, or for each channel of `run` consecutive vectors.
    signed : bool
        From the lowest to the highest value of the block; else from zero up (spreads).
    """
    heads, pages, width = vectors.shape
    if scale == "vector":
        blocks, dim = vectors, 2
    else:
        short = -pages % run
        # Repeating the last vector changes no extreme.
        padded = torch.cat([vectors, vectors[:, -1:].expand(-1, short, -1)], dim=1)
        blocks, dim = padded.unflatten(1, (-1, run)), 2
    if signed:
        low, high = blocks.amin(dim=dim, keepdim=True), blocks.amax(dim=dim, keepdim=True)
        low, high = low.to(torch.bfloat16).float(), high.to(torch.bfloat16).float()
    else:
        high = blocks.amax(dim=dim, keepdim=True).to(torch.bfloat16).float()
        low = torch.zeros_like(high)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    levels = ((blocks - low) / step).round().clamp(0, 2**bits - 1)
    restored = low + levels * step
    return restored.reshape(heads, -1, width)[:, :pages]


def quantised(weight: float, mean_bits: int, spread_bits: int, scale: Scale, run: int = 16) -> PageScore:
    """KIV's score from a quantised mean and spread; scales are counted in the bytes."""

    def score(scene: Scene, page_tokens: int) -> torch.Tensor:
        mean, spread = mean_spread(scene.paged_keys(page_tokens))
        mean = quantise(mean, mean_bits, scale, run, signed=True)
        spread = quantise(spread, spread_bits, scale, run, signed=False)
        return dot(scene, mean) + weight * weigh_spread(scene, spread)

    # Low and high of the mean, high of the spread, in bfloat16.
    overhead = 3 * BF16_BYTES / run if scale == "channel" else 0.0
    label = f"mean int{mean_bits} + {weight:g} spread int{spread_bits}, scale a {scale}"
    return PageScore(label, score, (mean_bits + spread_bits) / 8 + overhead, coarse=True)
