"""The hot buffer of a steady decode holds the window and a page, whatever was appended before."""

import pytest
from fast_helpers import SCALE, draw, state_of
from kiv_fast import FastPool
from kiv_reference import KIVConfig

SINKS, HOT, PAGE = 4, 64, 32


@pytest.mark.parametrize("attended", [True, False])
def test_a_long_append_leaves_no_room_behind(attended: bool) -> None:
    pool = FastPool(KIVConfig(hot_tokens=HOT, page_tokens=PAGE, sink_tokens=SINKS))
    store = pool.layer_store()
    key, value, query = draw(0, 5000)
    for start, stop in ((0, 4990), *((at, at + 1) for at in range(4990, 5000))):
        store.append(key[:, :, start:stop], value[:, :, start:stop])
        if attended or stop == 5000:
            store.attend(query[:, :, start:stop], scale=SCALE)
    slots = SINKS + HOT + PAGE
    assert state_of(store).recent.nbytes == slots * 2 * 2 * 16 * 4
    pool.close()
