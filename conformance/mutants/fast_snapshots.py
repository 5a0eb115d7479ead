"""Faults in how kiv_fast gives its state away, takes another, and reads pages where they were saved."""

from __future__ import annotations

from .source import Fault, clause

TESTS = "packages/kiv-fast/tests/test_saved_pages.py::test_"


RESTORED = "packages/kiv-fast/tests/test_restored.py::test_"


def restored(test: str) -> tuple[str, ...]:
    """Name a test of what may happen to a restored store, or to the one it comes from."""
    return (RESTORED + test,)


def saved(test: str) -> tuple[str, ...]:
    """Name a test of pages that are read as they are needed."""
    return (TESTS + test,)


IN_TURN = restored("pages_are_read_where_no_fork_is_at_work")
NOTED = """flags[blocks] = False  # before it counts: whatever comes between, no block is taken as read
    self.count -= len(blocks)"""
FEW = restored("few_blocks_are_held_beside_their_rows")
ANSWERS = saved("answers_are_those_of_the_first_store")
BROKEN = saved("a_block_that_is_not_what_was_saved_is_an_error_until_it_is")
LATER = saved("pages_that_come_later_may_have_the_ids_of_restored_ones")
REFUSED = saved("an_index_that_memory_could_not_be_read_by_is_refused")
NO_ROOM = saved("saved_pages_take_no_room_under_a_budget")
BRING, CPU = "kiv_fast.tiers.absent:Absent._bring", "kiv_fast.ops.cpu:CpuOps"
ADOPTION, SAVED, INDEX = "kiv_fast.adoption:Adoption", "kiv_fast.tiers.saved:SavedParts", "kiv_fast.index.index:Index"
READ = "asked(self._source.read, values, blocks, blocks * nbytes, whole)"

FAULTS = [
    Fault("a block that could not be read is there", BRING, READ, f"flags[blocks] = False; {READ}", BROKEN),
    Fault("a block is written at another place", BRING, READ, READ.replace("nbytes,", "(nbytes // 2),"), ANSWERS),
    Fault("values are there where keys are", BRING, "self._flags[values]", "self._flags[0]", ANSWERS),
    Fault("nothing is left to be read", BRING, "blocks = blocks[flags[blocks]]", "blocks = blocks[:0]", ANSWERS),
    Fault("blocks are read again", BRING, "flags[blocks] = False", "pass",
          saved("a_step_reads_no_more_than_the_blocks_it_chose_from_and_no_block_twice")),
    Fault("what was read still counts", BRING, "self.count -= len(blocks)", "pass",
          saved("what_was_read_whole_costs_no_look_any_more")),
    Fault("absent pages outlive their ids", "kiv_fast.tiers.absent:Absent.forget", "flags[gone] = False", "pass",
          LATER),
    Fault("candidates are scored unread", f"{CPU}.select", "keys.bring(at[:, :candidates])", "pass", ANSWERS),
    Fault("more candidates are scored unread", f"{CPU}._more", "keys.bring(", "str(", ANSWERS),
    Fault("values are attended unread", f"{CPU}._retrieved", "values.bring(found.positions)", "pass", ANSWERS),
    Fault("pages are attended unread", "kiv_fast.tokens:Tokens.paged_tiles", "if brings:", "if False:", ANSWERS),
    Fault("a tile is copied unread", "kiv_fast.tiers.ram:RamArena.tile", "self.bring_pages(", "str(", ANSWERS),
    Fault("rows are gathered unread", "kiv_fast.tiers.ram:RamArena._rows", "if self.absent:", "if False:", ANSWERS),
    Fault("parts are given away unread", "kiv_fast.tiers.ram:RamArena.parts", "if self._absent is not None:",
          "if False:", saved("a_snapshot_of_a_restored_store_reads_what_is_missing")),
    Fault("saved pages count as spilled", "kiv_fast.tiers.tiered:TieredArena.bytes_of",
          "disk=whole.disk - saved * self.page_bytes", "disk=whole.disk", NO_ROOM),
    Fault("saved pages have one place in the row cache", "kiv_fast.tiers.tiered:TieredArena._read",
          "np.where(saved, pages.numpy()[missing],", "np.where(saved, 0,", ANSWERS),
    Fault("the first token of a saved block", f"{SAVED}.read", "parts[mine] % tokens]", "0 * parts[mine]]", ANSWERS),
    Fault("a head's part of another saved page", f"{SAVED}.read", "pages * of_page + parts * each",
          "pages * of_page + parts", ANSWERS),
    Fault("any channel is taken", f"{INDEX}.taken", "if pages and not", "if False and not", REFUSED),
    Fault("any dtype of an index is taken", f"{INDEX}.taken", "part.dtype != table.tensor.dtype", "False", REFUSED),
    Fault("an index with other than numbers is taken", f"{INDEX}.taken", "coded if all(", "coded if any(",
          saved("an_index_with_other_than_numbers_is_made_anew")),
    Fault("the index of another page", f"{ADOPTION}._index", "index.put(ids[step],", "index.put(ids[step][::-1],",
          ANSWERS),
    Fault("weights of an earlier boundary", f"{ADOPTION}._coded", "[s + size + hot]", "[s + size - 64]",
          clause("9.8")),
    Fault("room of what is taken stays reserved", f"{ADOPTION}.run", "cold.let_go(ids)  #", "pass  #", NO_ROOM),
    Fault("a source that cannot be read breaks the store", "kiv_fast.interrupts:asked", "error.with_traceback(None)",
          "error", restored("a_crop_that_cannot_read_leaves_the_store_and_its_forks_as_they_were")),
    Fault("no room for what is cold by then", "kiv_fast.snapshots:restore", "(config.cold_pages(length) - pages)", "0",
          restored("what_is_cold_before_an_attend_has_its_room_at_once")),
    Fault("a page that none has shifts the others", f"{ADOPTION}.__init__", "first[numbers]", "first[: len(at)]",
          restored("pages_that_no_sequence_has_are_let_go")),
    Fault("a snapshot outlives its store", "kiv_fast.store:FastStore.snapshot", "self._turn", "self.guard.turn",
          restored("the_store_of_a_snapshot_lives_as_long_as_it")),
    Fault("pages are read while forks move them", "kiv_fast.snapshots:ArenaPages.read", "with self._turn():",
          "if True:", IN_TURN),
    Fault("an index is read while forks grow it", "kiv_fast.snapshots:ArenaPages.index", "with self._turn():",
          "if True:", IN_TURN),
    Fault("two pools wait for each other", "kiv_fast.store:FastStore.restore", "else CARRYING", "else nullcontext()",
          IN_TURN),
    Fault("dead stores are released while pages are read", "kiv_fast.guard:Guard.turn", "self.inside, True",
          "self.inside, self.inside", IN_TURN),
    Fault("blocks count as read before they are noted", BRING, NOTED,
          "self.count -= len(blocks)\n    flags[blocks] = False",
          ("packages/kiv-fast/tests/test_interrupts.py::test_no_block_counts_as_read_before_it_is",)),
    Fault("a sequence has pages before it holds them", f"{ADOPTION}.run", "cold.hold(pages.tolist())",
          "self._tokens.rows[number] = table; cold.hold(pages.tolist())",
          restored("a_restore_that_is_refused_memory_holds_nothing")),
    Fault("blocks are held all at once", f"{SAVED}.read", "max(1, AT_ONCE // block_bytes)", "len(blocks)", FEW),
    Fault("rows of a block are copied to the first ones", f"{SAVED}.read", "out[at[mine]]", "out[at[: len(mine)]]",
          FEW),
    Fault("channels in any order are taken", f"{INDEX}.taken", "diff(dim=2) >= 0", "diff(dim=2) < 99", REFUSED),
    Fault("pages given away by their ids", "kiv_fast.snapshots:ArenaPages.read", "self._ids[which // heads]",
          "which // heads", clause("9.7")),
    Fault("a ring is given away without its beginning", "kiv_fast.tiers.window:Recent.whole", "hot[:, :, :again]",
          "hot[:, :, :0]", ("packages/kiv-fast/tests/test_window.py",)),
    Fault("samples of a restored store are as many as its queries", "kiv_fast.index.samples:Samples.restored",
          "sampled.permute(2, 0, 1, 3)", "0", clause("9.8")),
]  # fmt: skip
