"""Faults in saved contexts: a context is taken for one of another model."""

from __future__ import annotations

from .source import Fault

TESTS = "packages/kiv-hf/tests/test_contexts_provenance"

FAULTS = [
    Fault(
        "the last bytes of a tensor are not read",
        "kiv_hf.contexts.weight_samples:samples",
        "flat[-piece:]",
        "flat[:piece]",
        (f"{TESTS}_weights.py::TestSamples", f"{TESTS}.py::TestAnother::test_one_element"),
    ),
    Fault(
        "weights that were written in place are not read again",
        "kiv_hf.contexts.weights:_Stamp.holds",
        "(self.address, self.version) != before[1:]",
        "self.address != before.address",
        (f"{TESTS}_weights.py::TestReadOnce::test_what_changed_is_read_again",),
    ),
    Fault(
        "weights that an adapter was merged into are not read again",
        "kiv_hf.contexts.weights:_read",
        "known.adapters == adapters and ",
        "",
        (f"{TESTS}_weights.py::TestAdapters::test_a_layer_that_is_adapted_and_merged",),
    ),
    Fault(
        "the scales of 4 bits do not count",
        "kiv_hf.contexts.weight_places:_four_bits",
        ', "weight.scales": scales',
        "",
        (f"{TESTS}_weights.py::TestQuantised::test_other_scales",),
    ),
    Fault(
        "what nobody knows of a saved context passes",
        "kiv_hf.contexts.provenance:_difference",
        "NOT_GIVEN in (saved, now)",
        "NOT_GIVEN in (saved, now) or saved is None",
        (f"{TESTS}.py::TestTheCheck::test_a_field_that_one_side_does_not_have",),
    ),
    Fault(
        "frequencies that only this model has pass",
        "kiv_hf.contexts.provenance:_same",
        "all(any(_close(a, b) for a in ours) for b in theirs)",
        "True",
        (f"{TESTS}.py::TestTheCheck::test_a_table_of_frequencies_that_is_missing",),
    ),
]
