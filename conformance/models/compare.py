"""One model type: its stock cache against KIV, in float64 where the model can (SPEC 4.8, 11.3).

Then the fast implementation against the reference, where KIV has layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from kiv_fast import FastPool
from kiv_hf import KIVCache, KIVConfig, KIVError
from kiv_hf.compare.pool import KIVDivergenceError
from kiv_hf.routing import use_kiv
from torch.overrides import TorchFunctionMode

from .catalog import model_class, text_part, tiny_model
from .fast import compare_fast
from .feeds import PIECES, TOKENS, cache_argument, feed, padded, stock_cache, text
from .kinds import Recorder
from .outcome import Outcome

if TYPE_CHECKING:
    from kiv_reference.contract import PoolFactory

_PAGES: dict[str, Any] = {"hot_tokens": 8, "sink_tokens": 2, "page_tokens": 4}
EXACT = KIVConfig(retrieve_tokens=None, **_PAGES)
# One token of the cold ones and nothing for the rest, in prefill too: surely not what full attention gives.
STARVED = KIVConfig(
    retrieve_tokens=1, candidate_tokens=1, prefill="retrieve", query_block_tokens=4, exact_suffix_tokens=0,
    tail="none", **_PAGES
)  # fmt: skip

_NEVER = -1e30


class _Batch(NamedTuple):
    ids: torch.Tensor
    mask: torch.Tensor
    logits: torch.Tensor


def compare(model_type: str, candidate: PoolFactory = FastPool) -> Outcome:
    """Compare KIV with the stock cache, and `candidate` with the reference, on a tiny model of `model_type`."""
    outcome = Outcome(model_type, part=text_part(model_type))
    cls = model_class(model_type)
    if cache_argument(cls) is None:
        outcome.verdict, outcome.reason = "no cache", f"{cls.__name__}.forward has no argument for a cache"
        return outcome
    try:
        stock, close = stock_model(model_type)
    except Exception as error:  # whatever keeps a tiny model from being built is the row's reason
        outcome.verdict, outcome.reason = "not tried", _first_line(error)
        return outcome
    try:
        ids = text(stock)
        expected = _stock_answers(stock, ids)
        bound = close * float(without_masked(expected["one shot"]).abs().max())
        batch = _padded(stock, ids)
    except Exception as error:  # whatever keeps the stock cache from working is the row's reason
        outcome.verdict, outcome.reason = "no cache", _first_line(error)
        return outcome
    recorder = Recorder()
    with recorder:
        try:
            kiv = use_kiv(tiny_model(model_type, None, dtype=stock.dtype))
            _compare_all(outcome, kiv, ids, expected, bound, batch)
            if outcome.verdict == "supported":
                single = use_kiv(tiny_model(model_type, None))  # as it is used
                _compare_fast(outcome, single, ids, list(expected), batch, candidate)
        except KIVDivergenceError as error:
            outcome.verdict, outcome.reason = "wrong", f"fast against reference: {_first_line(error)}"
        except KIVError as error:
            outcome.verdict, outcome.reason = "refused", _first_line(error)
        except Exception as error:  # a refusal of another kind is a defect, and its row says so
            outcome.verdict, outcome.reason = "wrong", f"{type(error).__name__}: {_first_line(error)}"
    outcome.kinds = recorder.kinds(stock)
    return outcome


def _compare_all(
    outcome: Outcome,
    kiv: Any,
    ids: torch.Tensor,
    expected: dict[str, torch.Tensor],
    bound: float,
    batch: _Batch | None,
) -> None:
    caches = {name: KIVCache(kiv.config, EXACT) for name in expected}
    for name, logits in expected.items():
        _judge(outcome, name, feed(kiv, ids, caches[name], PIECES[name]), logits, bound)
    *_, cache = caches.values()
    layers = cache.kiv_layers()
    used = [i for i, layer in layers.items() if layer.get_seq_length() > 0]
    outcome.kiv_layers = len(used)
    outcome.cold_tokens = cache.tokens(used[0]).cold_ram if used else 0
    if used and "chunks" in expected:
        starved = feed(kiv, ids, KIVCache(kiv.config, STARVED), PIECES["chunks"])
        outcome.control = distance_of(starved, expected["chunks"]) / bound
    if batch is not None:
        got = feed(kiv, batch.ids, KIVCache(kiv.config, EXACT), PIECES["chunks"], batch.mask)
        # What a padding query answers is nobody's business, and differs between transformers' own implementations.
        valid = batch.mask.bool()
        _judge(outcome, "padded chunks", got[valid], batch.logits[valid], bound)
    if outcome.ratio > 1:
        outcome.verdict = "wrong"
    elif not used:
        outcome.verdict = "delegated"
    elif outcome.cold_tokens <= TOKENS // 2 or outcome.control <= 1:
        outcome.reason = (
            f"{outcome.cold_tokens} cold tokens, control {outcome.control:.1f}: the comparison shows nothing"
        )
    else:
        outcome.verdict = "supported"


def _compare_fast(
    outcome: Outcome, kiv: Any, ids: torch.Tensor, feeds: list[str], batch: _Batch | None, candidate: PoolFactory
) -> None:
    padded_ids = None if batch is None else (batch.ids, batch.mask)
    outcome.fast = compare_fast(kiv, ids, feeds, padded_ids, candidate)
    if outcome.fast == 0:
        outcome.verdict, outcome.reason = "wrong", "fast against reference: no selection was a choice"


def _stock_answers(stock: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the stock cache's logits for every way to feed the text that it can do: in one shot at least."""
    answers = {"one shot": feed(stock, ids, stock_cache(stock), PIECES["one shot"])}
    for name in ("chunks", "token by token"):
        try:
            answers[name] = feed(stock, ids, stock_cache(stock), PIECES[name])
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue
    return answers


def _padded(stock: Any, ids: torch.Tensor) -> _Batch | None:
    """Return a left-padded batch with the stock cache's answer; None where the stock cache cannot do it in pieces."""
    # With a mask and no image, GIT widens the mask by the tokens of an image that is not there.
    if ids.shape[0] > 1 or ids.ndim > 2 or stock.config.model_type == "git":
        return None
    batch, mask = padded(ids)
    try:
        return _Batch(batch, mask, feed(stock, batch, stock_cache(stock), PIECES["chunks"], mask))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return None


def stock_model(model_type: str) -> tuple[Any, float]:
    """Return the stock model, and how far right logits may lie apart, as a share of the largest.

    In float64 right answers agree to 1e-10 on any processor. A model that attends in float32 all the same, or cannot
    run in float64, is compared in float32, where 1e-4 is far beyond what any order of sums moves. A model that caps its
    logits attends by its own code: older transformers take sdpa for it, which leaves the cap out.
    """
    wide, watch, attention = tiny_model(model_type, None, dtype=torch.float64), AttentionInFloat32(), None
    if getattr(wide.config.get_text_config(decoder=True), "attn_logit_softcapping", None):
        attention = "eager"
        wide = tiny_model(model_type, attention, dtype=torch.float64)
    try:
        with watch:
            feed(wide, text(wide), stock_cache(wide), PIECES["one shot"])
    except (RuntimeError, ValueError, TypeError):
        watch.seen = True
    return (tiny_model(model_type, attention), 1e-4) if watch.seen else (wide, 1e-10)


class AttentionInFloat32(TorchFunctionMode):
    """Note whether scores or weights of attention, which have four dimensions, were computed in float32."""

    seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("matmul", "__matmul__", "softmax"):
            self.seen |= answer.ndim == 4 and answer.dtype == torch.float32
        return answer


def _judge(outcome: Outcome, name: str, got: torch.Tensor, right: torch.Tensor, bound: float) -> None:
    ratio = distance_of(got, right) / bound
    if not ratio <= 1 and not outcome.reason:
        outcome.reason = f"{name}: {ratio:.3g} times the bound {bound:.2g}"
    outcome.ratio = max(outcome.ratio, ratio)


def distance_of(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference of two tensors of logits, infinity where it is NaN."""
    distance = float((without_masked(a) - without_masked(b)).abs().max())
    return distance if distance == distance else float("inf")


def without_masked(logits: torch.Tensor) -> torch.Tensor:
    """Return logits in float64, 0 where one stands for "never": that is the least number of whatever dtype it had."""
    return logits.double().masked_fill(logits < _NEVER, 0.0)


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
