import pytest
import torch
from fast_helpers import SCALE, draw, feed
from kiv_fast import FastPool, Tuning, chapters
from kiv_fast.product import WidenedProduct, product_for
from kiv_fast.ranking import largest, top, top_set
from kiv_fast.scan import Scanner
from kiv_fast.select import candidates, page_query, rank
from kiv_fast.validate import Shape

HEADS, WIDTH, PAGES = 2, 24, 64
SHAPE = Shape(1, HEADS, WIDTH, WIDTH, torch.float32, torch.device("cpu"))

PACKED = product_for(SHAPE.device, 2 * WIDTH, 1 << 20)
PRODUCTS = {"widened": WidenedProduct()} | ({} if PACKED is None else {"packed": PACKED})


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e12])
@pytest.mark.parametrize("offset", [0.0, 50.0])
@pytest.mark.parametrize("seed", range(5))
def test_no_score_is_further_off_than_its_bound(product, size, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    channels = torch.randn(2 * WIDTH, generator=generator).exp()
    scanner = Scanner(SHAPE, PRODUCTS[product])
    shape = PAGES, HEADS, 2 * WIDTH
    packed = [(torch.randn(shape, generator=generator) + offset) * channels * size for _ in range(3)]
    for number, summaries in enumerate(packed):
        scanner.put(number, summaries)
    members = page_query(torch.randn(HEADS, 4, WIDTH, generator=generator), SCALE, 0.5)
    scores, error = scanner.scores(members, [0, 1, 2])
    true = members.double() @ torch.cat(packed).permute(1, 2, 0).double()
    off = (scores - true).abs().amax(dim=2)
    assert bool((off <= error).all())
    assert bool((error < 0.2 * true.std(dim=2)).all()), "a bound that is never useful"


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(
    ("size", "query_size"), [(1e-39, 1.0), (1e-30, 1.0), (1e-20, 1e-20), (1e-12, 1e-26), (1.0, 1e-38)]
)
def test_nor_where_numbers_or_their_squares_underflow(product, size, query_size):
    generator = torch.Generator().manual_seed(0)
    scanner = Scanner(SHAPE, PRODUCTS[product])
    summaries = torch.randn(PAGES, HEADS, 2 * WIDTH, generator=generator) * size
    scanner.put(0, summaries)
    members = page_query(torch.randn(HEADS, 4, WIDTH, generator=generator) * query_size, SCALE, 0.5)
    scores, error = scanner.scores(members, [0])
    true = members.double() @ summaries.permute(1, 2, 0).double()
    assert bool(((scores - true).abs().amax(dim=2) <= error).all())


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("group", ["exp_sum", "max"])
def test_pruning_never_changes_what_is_retrieved(config, group, product, monkeypatch):
    from dataclasses import replace

    config = replace(config, group=group)
    data = draw(3, 900)
    chunks = [860] + [1] * 40
    plain, quick = FastPool(config), FastPool(config, tuning=Tuning(least_chapter_pages=8, most_chapter_pages=32))
    expected = feed(plain.layer_store(), data, chunks)
    monkeypatch.setattr(chapters, "product_for", lambda *arguments: PRODUCTS[product])
    assert torch.equal(feed(quick.layer_store(), data, chunks), expected)
    assert plain.counters.pages_pruned == 0
    assert quick.counters.pages_pruned > 1000


@pytest.mark.skipif(PACKED is None, reason="nothing is packed on this processor")
@pytest.mark.parametrize(
    ("dtype", "heads", "width", "page", "packed"),
    [
        (torch.bfloat16, 1, 16, 4, False),
        (torch.float32, 5, 33, 7, False),
        (torch.bfloat16, 2, 64, 8, False),  # 2048 bytes and a summary of 768 beside a padding of 384
        (torch.bfloat16, 2, 64, 64, True),
        (torch.bfloat16, 1, 256, 1, True),  # 512 levels are a whole block
    ],
)
def test_what_padding_would_make_a_tenth_larger_is_not_packed(config, dtype, heads, width, page, packed):
    from dataclasses import replace

    store = FastPool(replace(config, page_tokens=page, retrieve_tokens=page)).layer_store()
    store.append(*draw(1, 1, heads=heads, width=width, value_width=width, dtype=dtype)[:2])
    product = store.state.cold.chapters.scanner._product
    assert isinstance(product, WidenedProduct) is not packed


def test_ties_go_to_the_lower_index():
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]])
    assert top(scores, 2).tolist() == [[1, 2]]
    assert top_set(scores, 2).tolist() == [[1, 2]]
    assert top(scores, 5).tolist() == [[1, 2, 4, 3, 0]]
    assert largest(scores, 3).tolist() == [[1, 2, 4]]


@pytest.mark.parametrize("values", [3, 40, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_best_are_those_of_a_stable_sort(values, dtype):
    generator = torch.Generator().manual_seed(values)
    for width in (1, 2, 17, 100):
        scores = torch.randint(0, values, (5, width), generator=generator).to(dtype)
        scores[0, 0] = -torch.inf
        order = scores.sort(dim=1, descending=True, stable=True).indices
        for n in {1, width // 2, width - 1, width} - {0}:
            assert torch.equal(top(scores, n), order[:, :n])
            assert torch.equal(top_set(scores, n), order[:, :n].sort(dim=1).values)
            found = largest(scores, n)
            assert torch.equal(found, found.unique(dim=1).sort(dim=1).values)
            assert torch.equal(scores.gather(1, found).sort(dim=1).values, scores.sort(dim=1).values[:, width - n :])
    assert top(scores, 0).shape == (5, 0)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("group", ["exp_sum", "max"])
def test_a_bound_that_overflows_excludes_nothing(config, group, size):
    """Scores so large that the exponential of the error is infinite, and that of most differences zero."""
    store = FastPool(config, tuning=Tuning(least_chapter_pages=16, most_chapter_pages=32)).layer_store()
    key, value, query = draw(4, 900)
    # Every other page lies far below the others, which are nearly alike.
    far = (torch.arange(900) - config.sink_tokens) // config.page_tokens % 2 == 0
    key = torch.where(far[:, None], -1, 1) + min(1e-3, 1 / size) * key
    feed(store, (key, value, query), [900])
    cold, row = store.state.cold, store.state.rows[0]
    for noise in query[0, :, :40].unflatten(0, (cold.shape.heads, -1)).unbind(dim=2):
        members = page_query(size + noise, SCALE, 0.5)
        right = rank(cold, row, members, store.state.pages, 5, group)
        assert torch.equal(candidates(cold, row, members, store.state.pages, 5, group), right)
