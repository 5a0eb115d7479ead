import pytest
from kiv_fast.pages.block_table import BlockTable, IdPool


def test_ids_return_when_their_last_holder_goes() -> None:
    pool = IdPool()
    ids = pool.take(3)
    pool.share(ids[:2])
    assert pool.drop(ids) == [2]
    assert pool.used == 2
    assert pool.take(2) == [2, 3]
    assert pool.drop([0]) == [0]


def test_a_free_id_cannot_be_dropped_or_shared() -> None:
    pool = IdPool()
    pool.drop(pool.take(1))
    with pytest.raises(AssertionError, match="a free id"):
        pool.drop([0])
    with pytest.raises(AssertionError, match="a free id"):
        pool.share([0])


def test_a_row_knows_its_consecutive_pages_and_its_padding() -> None:
    row = BlockTable()
    row.extend([4, 5, 6], [4, 4, 4], 4, True)
    assert (row.whole, row.finite, row.padded) == (3, 3, False)
    row.extend([9, 10], [3, 0], 4, False)
    row.extend([11], [4], 4, True)
    assert (row.whole, row.finite, row.padded) == (3, 3, True)
    assert row.cut(3, page_tokens=4) == [9, 10, 11]
    assert (list(row.pages), list(row.counts), row.padded) == ([4, 5, 6], [4, 4, 4], False)
    assert row.cut(2, page_tokens=4) == [6]
    assert (row.whole, row.finite) == (2, 2)


def test_a_copy_shares_no_list() -> None:
    row = BlockTable()
    row.extend([0], [4], 4, True)
    row.copy().extend([1], [4], 4, True)
    assert list(row.pages) == [0]
