"""SPEC 4.9: widening, with keys whose estimates rank as badly as a test wants, and with others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kiv_reference import KIVConfig

from .answers import same_bits
from .data import Tokens
from .driver import Driver, drive
from .expect import same_report
from .strategies import Scenario, configs, decode_only, scenarios, shapes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .target import Target

PAIRS = 140
BIG = 4096.0
"""A query's weight of the channel that the index hides: it alone decides a score."""


def tokens(marks: Mapping[int, int], pairs: int = PAIRS) -> Tokens:
    """Return cold pages of two tokens whose estimates rank all 2 · `pairs` tokens, and a last token, which asks.

    Channel 0 is coded. Page j holds 16 (j + 1) and its opposite there, of which the index makes 15 (j + 1): the one of
    rank r from above has its partner at rank r from below. Channel 1 is not coded: the mark of one, the opposite of its
    partner, a mean of zero. A mark of 2 weighs more than one of 1, which weighs more than any channel 0; all is exact.
    """
    key = torch.zeros(1, 1, 2 * pairs + 1, 2)
    for j in range(pairs):
        mark = marks.get(pairs - 1 - j, 0) - marks.get(pairs + j, 0)
        key[0, 0, 2 * j] = torch.tensor([16.0 * (j + 1), mark])
        key[0, 0, 2 * j + 1] = -key[0, 0, 2 * j]
    value = torch.arange(3.0 * key.shape[2]).reshape(1, 1, -1, 3) % 251 - 125
    return Tokens(key, value, torch.tensor([1.0, BIG]).expand(1, 1, key.shape[2], 2))


def positions(ranks: Iterable[int], pairs: int = PAIRS) -> list[int]:
    """Tell where the tokens of these ranks are, ascending."""
    return sorted(2 * (pairs - 1 - r) if r < pairs else 2 * (r - pairs) + 1 for r in ranks)


def config(candidates: int, selected: int, **fields: Any) -> KIVConfig:
    """Configure pages of two tokens, one coded channel, nothing hot and no sink but what `fields` say."""
    mine: dict[str, Any] = {"hot_tokens": 0, "sink_tokens": 0, "page_tokens": 2, "index_channels": 1, "group": "max"}
    return KIVConfig(candidate_tokens=candidates, retrieve_tokens=selected, **{**mine, **fields})


def late_ones(candidates: int, selected: int, late: int) -> dict[int, int]:
    """Return marks of as many of the C best as are selected, `late` of them not among the ⌊3C / 4⌋ best."""
    early = 3 * candidates // 4
    return dict.fromkeys([*range(selected - late), *range(early, early + late)], 1)


def asked(target: Target, given_config: KIVConfig, given_tokens: Tokens, queries: int = 1) -> Driver:
    """Return a store with all tokens, whose last call is that of the last `queries`."""
    driver, first = Driver(target, given_config, exact=True), given_tokens.key.shape[2] - queries
    driver.append(given_tokens.slice(0, first))
    driver.append(given_tokens.slice(first, first + queries))
    driver.attend(given_tokens.query[:, :, first:], 0.25)
    return driver


def is_widened(driver: Driver, widened: bool) -> None:
    """Check that every head of every block of the last call is widened, or none is."""
    got = [block.widened.tolist() for block in driver.store.report.blocks]
    right = all(flag == widened for rows in got for row in rows for flag in row)
    driver.scene.require(bool(got) and right, "4.9", "wrong heads widened", got=got, expected=widened)


class Test_4_9_Widening:
    """Where too many selected tokens come from the last quarter of the candidates, twice as many are candidates."""

    @pytest.mark.parametrize(
        ("candidates", "selected", "late", "widened"),
        [
            (64, 32, 2, False),  # R / 16 = 2
            (64, 32, 3, True),
            (64, 16, 1, False),
            (64, 16, 2, True),
            (64, 15, 1, True),  # R / 16 is no whole number, and is not rounded
            (64, 20, 1, False),
            (64, 20, 2, True),
            (64, 20, 0, False),
            (16, 14, 2, False),  # C₃ = 12, so that 2 are late at least
            (16, 14, 3, True),
            (16, 13, 1, False),
            (16, 13, 2, True),
            (16, 16, 4, False),  # all candidates are selected
            (13, 4, 0, False),  # C₃ = 9
            (13, 4, 1, True),
            (2, 1, 1, True),  # C₃ = 1
            (1, 1, 1, False),  # C₃ = 0: all that is selected is late
        ],
    )
    def test_by_how_many_are_late(
        self, target: Target, candidates: int, selected: int, late: int, widened: bool
    ) -> None:
        """Just enough late tokens, and two beyond the C best, which only a widened block can find."""
        beyond = {candidates: 2, 2 * candidates - 1: 2, 2 * candidates: 2}
        marks = {**late_ones(candidates, selected, late), **beyond}
        driver = asked(target, config(candidates, selected), tokens(marks))
        is_widened(driver, widened)
        (block,), known = driver.store.report.blocks, candidates * (1 + widened)
        best = sorted(range(known), key=lambda rank: (-marks.get(rank, 0), rank))[:selected]
        for name, ranks in (("candidate_positions", range(known)), ("selected_positions", best)):
            got, right = getattr(block, name).tolist(), [[positions(ranks)]]
            driver.scene.require(got == right, "4.9", f"wrong {name}", got=got, expected=right)
        read = known * 2 * 4, selected * 3 * 4  # of channels, of bytes
        driver.scene.require((block.key_bytes, block.value_bytes) == read, "9.6", "wrong bytes", expected=read)

    @pytest.mark.parametrize("pairs", [9, 12, 16, 17])
    def test_fewer_than_twice_as_many_tokens(self, target: Target, pairs: int) -> None:
        """Between C and 2C cold tokens all become candidates."""
        last = range(12, 16)  # late, and partners of none of the marked
        driver = asked(target, config(16, 4), tokens(dict.fromkeys(last, 1), pairs))
        is_widened(driver, True)
        (block,) = driver.store.report.blocks
        expected = [[positions(range(min(32, 2 * pairs)), pairs)]]
        got = block.candidate_positions.tolist()
        driver.scene.require(got == expected, "4.9", "not all are candidates", got=got, expected=expected)

    @pytest.mark.parametrize(("pairs", "widened"), [(8, False), (9, True)])
    def test_padding_is_not_ranked(self, target: Target, pairs: int, widened: bool) -> None:
        """More than C positions are cold, but of valid tokens there are C, or two more."""
        given_tokens = tokens(dict.fromkeys(range(12, 16), 1), pairs)
        padded = Tokens(*(torch.cat([x[:, :, :8], x], dim=2) for x in given_tokens[:3]))
        valid = (torch.arange(padded.key.shape[2]) >= 8)[None]
        is_widened(asked(target, config(16, 4), padded._replace(valid=valid)), widened)

    @pytest.mark.parametrize("late", [2, 3])
    def test_a_query_at_padding(self, target: Target, late: int) -> None:
        """It widens for itself (SPEC 2.4): its output is that of what it selected; it is not reported."""
        given_tokens = tokens({**late_ones(64, 32, late), 70: 2})
        valid = (torch.arange(given_tokens.key.shape[2]) < 2 * PAIRS)[None]
        is_widened(asked(target, config(64, 32, tail="none"), given_tokens._replace(valid=valid)), False)

    @pytest.mark.parametrize(("late", "widened"), [(2, False), (3, True)])
    def test_blocks_of_several_queries(self, target: Target, late: int, widened: bool) -> None:
        """The members widen together, by the group score of them all."""
        mine = tokens({**late_ones(64, 32, late), 70: 2})
        grown = Tokens(*(torch.cat([x, torch.zeros_like(x[:, :, :7])], dim=2) for x in mine[:3]))
        grown.query[:, :, -7:] = mine.query[:, :, -1:] * torch.tensor([1.0, 0.5, 1.0, 0.25, 1.0, 1.0, 0.5])[:, None]
        prefill = config(64, 32, prefill="retrieve", query_block_tokens=4, exact_suffix_tokens=0)
        driver = asked(target, prefill, grown, queries=8)
        driver.scene.require(len(driver.store.report.blocks) == 2, "7.2", "wrong blocks")
        is_widened(driver, widened)

    def test_each_head_by_itself(self, target: Target) -> None:
        """One KV head of two, in one sequence of two."""
        well, badly = (tokens({**late_ones(64, 32, late), 70: 2}) for late in (2, 3))
        pairs = zip(well[:3], badly[:3], strict=True)
        parts = [torch.cat([torch.cat([a, b], dim=1), torch.cat([a, a], dim=1)]) for a, b in pairs]
        driver = asked(target, config(64, 32), Tokens(*parts))
        (block,) = driver.store.report.blocks
        got, right = block.widened.tolist(), [[False, True], [False, False]]
        driver.scene.require(got == right, "4.9", "wrong heads widened", got=got, expected=right)

    @pytest.mark.parametrize(("beyond", "selected"), [((), 16), ((100,), 16), ((127,), 16), ((135,), 256)])
    def test_under_a_limit_of_what_is_missed(self, target: Target, beyond: tuple[int, ...], selected: int) -> None:
        """C' = 0 is widened, and holds where that is enough; else C' = 4C, which no last quarter widens (SPEC 6.3)."""
        marks = {**late_ones(64, 16, 3), **dict.fromkeys(beyond, 2)}
        driver = asked(target, config(64, 16, max_missed_mass=0.5), tokens(marks))
        is_widened(driver, selected == 16)
        got = int((driver.store.report.blocks[0].selected_positions >= 0).sum())
        driver.scene.require(got == selected, "6.3", "wrong number selected", got=got, expected=selected)

    @pytest.mark.parametrize("late", [3, 10, 16])
    def test_an_index_of_all_channels(self, target: Target, late: int) -> None:
        """What is late for an index of one channel is first for one of both."""
        given_tokens = tokens(late_ones(64, 32, late))
        for channels in (1, 2):
            is_widened(asked(target, config(64, 32, index_channels=channels), given_tokens), channels == 1)

    def test_no_other_key_is_read(self, target: Target) -> None:
        """Tokens of a page that are no candidates change places in the channel that is not coded (SPEC 4.7)."""
        given_tokens = tokens({**late_ones(64, 32, 3), 130: 1, 139: 2})
        other = given_tokens._replace(key=given_tokens.key.clone())
        last = 2 * (PAIRS - 128)  # pages below those of the 2C best
        other.key[0, 0, :last, 1] = given_tokens.key[0, 0, :last, 1].unflatten(0, (-1, 2)).flip(1).flatten()
        assert not torch.equal(other.key, given_tokens.key)
        one, two = (asked(target, config(64, 32), t) for t in (given_tokens, other))
        is_widened(one, True)
        same_report(one, two, "4.7")
        same = same_bits(one.operations.outputs[-1], two.operations.outputs[-1])
        two.scene.require(same, "4.7", "a key that is no candidate's was read")

    @given(
        scenario=scenarios(
            exact_population=True,
            config=configs(
                exact_population=True,
                candidate_tokens=st.sampled_from([5, 8, 13, 16]),
                page_tokens=st.sampled_from([2, 4]),
                index_channels=st.sampled_from([1, 2, 64]),
                hot_tokens=0,
                prefill="retrieve",
            ),
            shape=shapes(width=st.sampled_from([4, 8])),
        )
    )
    def test_exactly(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)

    @given(
        scenario=scenarios(
            config=configs(
                candidate_tokens=st.sampled_from([5, 8, 13, 16]),
                page_tokens=st.sampled_from([2, 4]),
                index_channels=st.sampled_from([1, 2, 64]),
                hot_tokens=0,
            ),
            shape=shapes(width=st.sampled_from([4, 8])),
            kinds=("gaussian", "spiky", "needle", "pages"),
            calls=decode_only(),
        )
    )
    def test_admissibly(self, target: Target, scenario: Scenario) -> None:
        drive(target, scenario)
