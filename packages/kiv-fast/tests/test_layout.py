import pytest
from kiv_fast.layout import IdPool, Row


def test_ids_return_when_their_last_holder_goes():
    pool = IdPool()
    ids = pool.take(3)
    pool.share(ids[:2])
    assert pool.drop(ids) == [2]
    assert pool.used == 2
    assert pool.take(2) == [2, 3]
    assert pool.drop([0]) == [0]


def test_a_free_id_cannot_be_dropped_or_shared():
    pool = IdPool()
    pool.drop(pool.take(1))
    with pytest.raises(AssertionError):
        pool.drop([0])
    with pytest.raises(AssertionError):
        pool.share([0])


def test_a_row_knows_its_consecutive_pages_and_its_padding():
    row = Row()
    row.extend([4, 5, 6], [4, 4, 4], 4)
    assert (row.whole, row.padded, row.empty) == (3, False, False)
    row.extend([9, 10], [3, 0], 4)
    assert (row.whole, row.padded, row.empty) == (3, True, True)
    row.spans = [0, 1]
    row.chapters = [7]
    gone = row.cut(3, span_pages=2, chapter_pages=4, page_tokens=4)
    assert (gone.pages, gone.spans, gone.chapters) == ([9, 10], [1], [7])
    assert (row.pages, row.spans, row.padded, row.empty) == ([4, 5, 6], [0], False, False)


def test_a_copy_shares_no_list():
    row = Row()
    row.extend([0], [4], 4)
    row.copy().extend([1], [4], 4)
    assert row.pages == [0]
