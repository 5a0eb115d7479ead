"""Layers that stay dense: no error there, and every one of their bytes."""

from __future__ import annotations

import pytest

from benchmarks.fidelity.attention import output_error
from benchmarks.fidelity.costs import ORIGINAL_AT_1M, cost, dense_cost, mixed
from benchmarks.fidelity.dense_layers import policies, price, with_dense
from benchmarks.fidelity.measure import statistics
from benchmarks.fidelity.rows import KIV
from benchmarks.fidelity.rules import Rule
from benchmarks.fidelity.scene import SETTINGS

from .test_budgets import tally
from .test_rules import SETTING, SMALL, scene

TOKEN_BYTES = 2 * (512 + 512)


def test_a_dense_layer_has_no_error_and_the_others_keep_theirs():
    sparse = tally(SMALL)
    before, after = statistics(sparse), statistics(with_dense(sparse, (9,)))
    assert after.layer_means == {3: before.layer_means[3], 9: 0.0}
    assert after.mean == pytest.approx(before.layer_means[3] / 2)
    assert before.layer_means[9] > 0
    assert statistics(with_dense(sparse, ())) == before
    assert statistics(with_dense(sparse, (3, 9))).captured == 1


def test_that_error_is_what_reading_everything_gives():
    made = scene()
    everything = Rule("everything", retrieve_tokens=made.cold_tokens)
    assert output_error(made, everything.answer(made, SETTING).output).max() < 1e-5


def test_bytes_of_dense_layers_are_those_of_all_their_tokens():
    setting = SETTINGS["gemma"]
    held = dense_cost(setting, ORIGINAL_AT_1M, streamed=False)
    assert (held.device_bytes, held.moved_bytes) == (3 * 2**20 * TOKEN_BYTES, 0)
    streamed = dense_cost(setting, ORIGINAL_AT_1M, streamed=True)
    assert streamed.moved_bytes == 3 * (2**20 - 2048 - 4) * TOKEN_BYTES
    assert 3 * (2048 + 4) * TOKEN_BYTES < streamed.device_bytes < 50e6


def test_a_share_of_dense_layers_costs_its_share():
    setting = SETTINGS["gemma"]
    sparse = cost(KIV, setting, ORIGINAL_AT_1M, key_tokens=8192, value_tokens=512)
    dense = dense_cost(setting, ORIGINAL_AT_1M, streamed=False)
    one = mixed(sparse, dense, 1 / 3)
    assert one.moved_bytes == pytest.approx(sparse.moved_bytes * 2 / 3)
    expected = (sparse.device_bytes - sparse.staging_bytes) * 2 / 3 + sparse.staging_bytes + 2**20 * TOKEN_BYTES
    assert one.device_bytes == pytest.approx(expected)
    assert mixed(sparse, dense, 0) == sparse
    assert mixed(sparse, dense, 1) == dense


def test_the_price_of_none_is_the_default_s():
    found = statistics(tally(SMALL))
    plain = cost(KIV, SETTINGS["gemma"], ORIGINAL_AT_1M, found.key_tokens, found.value_tokens)
    for streamed in (False, True):
        assert price(KIV, "gemma", found, 0.0, streamed) == (plain.device_bytes / 1e6, plain.moved_bytes / 1e6)


def test_policies_name_layers_of_the_model():
    errors = {layer: 1.0 + layer % 7 for layer in range(30)}
    found = {policy.name: policy.layers for policy in policies(errors)}
    assert found["none: the default"] == ()
    assert found["the first two"] == (0, 1)
    assert found["the last"] == (29,)
    assert found["every 8th"] == (0, 8, 16, 24)
    assert found["largest error: 2"] == (6, 13)
    few = [policy.name for policy in policies({5: 0.1, 11: 0.3, 17: 0.2})]
    assert "largest error: 2" in few
    assert not {"largest error: 4", "every 8th"} & set(few)
    assert policies({5: 0.1, 11: 0.3, 17: 0.2})[-2].layers == (11,)
