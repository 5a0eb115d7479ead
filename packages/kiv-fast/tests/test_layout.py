import pytest
from kiv_fast.layout import IdPool, Row, chapter_stops, common_prefix, most_chapters


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
    row.spans = [0, 1, 2]
    row.chapters, row.chapter_stops = [7, 8], [2, 4]
    gone = row.cut(3, span_pages=2, page_tokens=4)
    assert (list(gone.pages), gone.spans, gone.chapters) == ([9, 10], [2], [8])
    assert (list(row.pages), row.spans, row.padded, row.empty) == ([4, 5, 6], [0, 1], False, False)
    assert (row.chapters, row.chapter_stops) == ([7], [2])


def test_chapters_halve_towards_the_end():
    assert chapter_stops(4 * 7 + 3, 1, 8) == [8, 16, 24, 28, 30, 31]
    assert chapter_stops(31, 4, 8) == [8, 16, 24, 28]
    assert chapter_stops(3, 4, 8) == chapter_stops(-2, 4, 8) == []
    assert common_prefix([8, 16, 20], [8, 16, 18, 19]) == 2
    assert common_prefix([], [8]) == 0
    assert common_prefix([8], [8, 16]) == 1


def test_a_growing_row_has_no_more_chapters_than_it_is_promised():
    for least, most in ((1, 1), (1, 8), (2, 8), (4, 4), (3, 12), (512, 8192)):
        at_any, promised = 0, 0
        for pages in range(-2, 6 * most):
            before, promised = promised, most_chapters(pages, least, most)
            at_any = max(at_any, len(chapter_stops(pages, least, most)))
            assert before <= promised
            assert at_any <= promised <= at_any + 1
    assert most_chapters(6, 2, 8) == 2


def test_a_copy_shares_no_list():
    row = Row()
    row.extend([0], [4], 4)
    row.copy().extend([1], [4], 4)
    assert list(row.pages) == [0]
