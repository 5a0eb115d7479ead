"""The best of many scores are those that a stable sort puts first (SPEC 1.3)."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kiv_fast.ops import ranking

ODD = [0.0, -0.0, 1.0, 2.0, torch.inf, -torch.inf, torch.nan]
NUMBERS = {
    "any": st.sampled_from(ODD) | st.floats(width=32),
    "many ties": st.sampled_from(ODD[:-1]),
    "no ties": st.floats(-1e3, 1e3, width=32),
}


@settings(deadline=None, derandomize=True, max_examples=300)
@given(data=st.data())
def test_the_best_are_those_of_a_stable_sort(data: st.DataObject) -> None:
    items, numbers = data.draw(st.integers(1, 24)), NUMBERS[data.draw(st.sampled_from(list(NUMBERS)))]
    row = st.lists(numbers, min_size=items, max_size=items)
    scores = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=3)))
    n = data.draw(st.integers(0, items))
    best = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :n]
    assert torch.equal(ranking.top_set(scores, n), best.sort(dim=1).values)
