"""Pages whose summaries are unlike in size, which are computed in another way."""

import torch
from fast_helpers import SCALE, draw, feed
from kiv_fast import FastPool
from kiv_fast.index import Sizes, Summary


def test_a_call_gives_the_same_bits_after_an_unlike_page_has_left_the_window(config):
    data = draw(3, 61)
    for part in data[:2]:
        part[:, :, -16:] *= 1e-3
    store = FastPool(config).layer_store()
    feed(store, data, [20, 30])
    for start in range(50, 61):
        key, value, query = (part[:, :, start : start + 1] for part in data)
        store.append(key, value)
        first = store.attend(query, scale=SCALE)
        assert torch.equal(store.attend(query, scale=SCALE), first)
    assert store.state.rows[0].sizes.alike < store.state.pages


def summary(*sizes):
    """Pages with one head, keys and values of these sizes."""
    column = torch.tensor(sizes)[:, None, None]
    return Summary(column.expand(-1, 1, 4), column.expand(-1, 1, 3))


def test_leading_pages_are_counted():
    sizes = Sizes(1)
    sizes.add(summary(1.0, 2.0), 0)
    assert (sizes.finite, sizes.alike) == (2, 2)
    sizes.add(summary(8.0, 100.0, 8.0), 2)
    assert (sizes.finite, sizes.alike) == (5, 3)
    sizes.add(summary(8.0, torch.inf), 5)
    assert (sizes.finite, sizes.alike) == (6, 3)
    sizes.add(summary(8.0), 7)
    sizes.cut(2)
    assert (sizes.finite, sizes.alike) == (2, 2)
    sizes.add(summary(0.0), 2)
    assert (sizes.finite, sizes.alike) == (3, 2)
