"""Faults in where the tiered implementation keeps pages: in RAM, in a file, and rows of the file that were read."""

from __future__ import annotations

from .source import Fault

TESTS = "packages/kiv-fast/tests/test_"

FAULTS = [
    Fault(
        "reservations that were used up are summed up for ever",
        "kiv_fast.cold:Cold.release",
        "self.arena.release(reservation)",
        "reservation.pages and self.arena.release(reservation)",
        (f"{TESTS}row_cache.py::test_reservations_that_were_used_up_are_forgotten",),
    ),
    Fault(
        "a full disk refuses pages for whose RAM rows stay",
        "kiv_fast.tiers.tiered:TieredArena.make_room",
        "self.drop_rows()",
        "raise",
        (f"{TESTS}row_cache.py::test_a_full_disk_leaves_pages_the_ram_of_rows",),
    ),
    Fault(
        "no page leaves RAM for what cannot",
        "kiv_fast.tiers.tiered:TieredArena.make_room",
        "and self.resident:",
        "and False:",
        (f"{TESTS}placement.py::test_pages_of_one_layer_give_way_to_the_index_of_another",),
    ),
    Fault(
        "rows of pages that went are kept for others",
        "kiv_fast.tiers.tiered:TieredArena.free",
        "self._rows_read.forget()",
        "pass",
        (f"{TESTS}row_cache.py::test_a_place_in_the_file_that_is_used_again",),
    ),
    Fault(
        "a forked process uses rows that its parent has read",
        "kiv_fast.tiers.page_file:PageFile.read",
        "self._check_process()",
        "len(offsets) and self._check_process()",
        (f"{TESTS}page_file.py",),
    ),
    Fault(
        "an interrupt leaves half a row",
        "kiv_fast.tiers.row_cache:RowCache.keep",
        "known[slots] = NOTHING",
        "pass",
        (f"{TESTS}row_cache.py::test_an_interrupt_leaves_no_half_row",),
    ),
    Fault(
        "the row that was asked for last goes",
        "kiv_fast.tiers.row_cache:RowCache.keep",
        "argmin(axis=1)",
        "argmax(axis=1)",
        (f"{TESTS}row_cache.py::test_the_row_that_was_not_asked_for_longest_goes",),
    ),
    Fault(
        "a row that is asked for again is as old as it was",
        "kiv_fast.tiers.row_cache:RowCache.take",
        "self._note(slots)",
        "pass",
        (f"{TESTS}row_cache.py::test_the_row_that_was_not_asked_for_longest_goes",),
    ),
    Fault(
        "the first row of a set for the one asked for",
        "kiv_fast.tiers.row_cache:RowCache.take",
        "* WAYS + found % WAYS",
        "* WAYS",
        (f"{TESTS}row_cache.py::test_the_row_that_was_not_asked_for_longest_goes",),
    ),
    Fault(
        "a row is kept as its neighbour",
        "kiv_fast.tiers.tiered:TieredArena._read",
        "kept.keep(offsets, out, missing)",
        "kept.keep(offsets, out, missing[::-1])",
        (f"{TESTS}row_cache.py::test_every_step_is_right_and_within_the_budget",),
    ),
    Fault(
        "rows are kept when nothing is on disk",
        "kiv_fast.tiers.tiered:TieredArena._trim",
        "self.drop_rows()",
        "pass",
        (f"{TESTS}row_cache.py::test_every_step_is_right_and_within_the_budget",),
    ),
    Fault(
        "rows of every head are read from the first",
        "kiv_fast.tiers.tiered:TieredArena._rows",
        "at % size",
        "at % size % self._page_tokens",
        (f"{TESTS}placement.py::test_every_budget_gives_the_same_bits",),
    ),
    Fault(
        "a tile of pages has the first head's rows",
        "kiv_fast.tiers.tiered:TieredArena.tile",
        ".repeat_interleave(len(ids))",
        ".repeat_interleave(len(ids)) * 0",
        (f"{TESTS}placement.py::test_every_budget_gives_the_same_bits",),
    ),
    Fault(
        "short reads begin again at the same place",
        "kiv_fast.tiers.file_io:read_all",
        "offset + done",
        "offset",
        (f"{TESTS}faults.py::test_short_counts_are_not_errors",),
    ),
    Fault(
        "room on disk is not reserved",
        "kiv_fast.tiers.file_io:FileIO.allocate",
        "os.posix_fallocate(handle, offset, nbytes)",
        "os.truncate(handle, offset + nbytes)",
        (f"{TESTS}parts.py::test_a_page_has_its_room_on_disk",),
    ),
    Fault(
        "a page on disk is forgotten and its place lost",
        "kiv_fast.tiers.page_file:PageFile.drop",
        "self._numbers.drop([place])",
        "pass",
        (f"{TESTS}budget_machine.py",),
    ),
    Fault(
        "bytes of a file that could not be made stay booked",
        "kiv_fast.tiers.page_file:PageFile.ensure",
        "self._cut(self._room - more)",
        "self._room -= more",
        (f"{TESTS}faults.py",),
    ),
    Fault(
        "values of a page on disk are read from its keys",
        "kiv_fast.tiers.page_file:PageFile.offsets",
        "self._key_bytes if value",
        "0 if value",
        (f"{TESTS}placement.py::test_every_budget_gives_the_same_bits",),
    ),
    Fault(
        "reads are joined whose places are apart",
        "kiv_fast.tiers.page_file:PageFile.read",
        " | (np.diff(at) != size)",
        "",
        (f"{TESTS}placement.py::test_every_budget_gives_the_same_bits",),
    ),
]
