"""Page scores from richer and smaller summaries, in cases that are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.fidelity.packed_keys import packed_logits
from benchmarks.fidelity.richer_scores import (
    mean_plus_direction,
    quantise,
    quantised,
    sub_pages,
    two_anchors,
)
from benchmarks.fidelity.scores import TRUE_MAXIMUM, mean_plus_spread
from benchmarks.fidelity.unrotated import turn, unrotated

from .test_rules import scene


@pytest.mark.parametrize("scale", ["vector", "channel"])
@pytest.mark.parametrize("signed", [True, False])
def test_quantise_errs_by_half_a_step(scale: str, signed: bool):
    generator = torch.Generator().manual_seed(3)
    vectors = torch.rand(2, 37, 8, generator=generator)
    if signed:
        vectors = vectors - 0.5
    restored = quantise(vectors, 6, scale, 16, signed)  # type: ignore[arg-type]
    assert restored.shape == vectors.shape
    # The range is at most 1; its ends are rounded to bfloat16.
    assert (restored - vectors).abs().max() <= 0.5 / 63 + 2**-8


def test_rotation_is_undone_and_meets_in_the_middle():
    made = scene()
    places = torch.arange(made.key.shape[1])
    torch.testing.assert_close(turn(turn(made.key, places, 1e4), -places, 1e4), made.key, rtol=1e-4, atol=1e-4)
    # A page of one token has no spread, and its key turned back is the key.
    torch.testing.assert_close(unrotated(0.5).score(made, 1), made.cold_logits, rtol=1e-4, atol=1e-4)
    # Keys that are one vector, rotated, have no spread before their rotation, and much after it.
    one = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(0)).expand(2, len(places), -1)
    same = replace(made, key=turn(one, places, made.rope_theta))
    without, spread = unrotated(0.0).score(same, 32), unrotated(0.5).score(same, 32)
    torch.testing.assert_close(without, spread, rtol=1e-3, atol=1e-3)
    assert (mean_plus_spread(0.5).score(same, 32) - mean_plus_spread(0.0).score(same, 32)).min() > 0.1


def test_many_bits_change_no_score():
    made = scene()
    exact = mean_plus_spread(0.5).score(made, 32)
    torch.testing.assert_close(quantised(0.5, 16, 16, "vector").score(made, 32), exact, rtol=0.01, atol=0.05)


def test_scales_count_as_bytes():
    assert quantised(0.5, 4, 4, "channel", 64).channel_bytes == pytest.approx(1 + 6 / 64)
    assert quantised(0.5, 8, 4, "vector").channel_bytes == 1.5


def test_packed_keys_converge():
    made = scene()
    torch.testing.assert_close(packed_logits(made, 32, 14), made.cold_logits, rtol=1e-3, atol=1e-3)
    coarse = (packed_logits(made, 32, 2) - made.cold_logits).abs().mean()
    fine = (packed_logits(made, 32, 4) - made.cold_logits).abs().mean()
    assert fine < coarse / 3


def test_one_token_a_part_is_the_true_maximum():
    made = scene()
    truth = TRUE_MAXIMUM.score(made, 8)
    torch.testing.assert_close(sub_pages(8, 0.0, shared=False).score(made, 8), truth, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(two_anchors("order", 0.0, False).score(made, 2), TRUE_MAXIMUM.score(made, 2))
    torch.testing.assert_close(two_anchors("principal", 0.0, False).score(made, 2), TRUE_MAXIMUM.score(made, 2))


def test_the_principal_direction_of_two_keys_joins_them():
    made = scene()
    truth = TRUE_MAXIMUM.score(made, 2)
    torch.testing.assert_close(mean_plus_direction(1.0, 0.0).score(made, 2), truth, rtol=1e-3, atol=1e-3)
