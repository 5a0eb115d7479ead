"""Processes that fork, before and after spilling, and that end: none changes, or reads, what another wrote (SPEC 10.1).

Each case runs in an interpreter of its own, with one thread: torch's threads do not survive a fork.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import os, sys, torch
from dataclasses import replace
from fast_helpers import SCALE, draw, feed, index_bytes
from kiv_fast import FastPool
from kiv_reference import KIVConfig
from kiv_reference.errors import KIVUsageError

torch.set_num_threads(1)
config = KIVConfig(
    hot_tokens=8, sink_tokens=2, page_tokens=4, index_channels=6, candidate_tokens=20, retrieve_tokens=7
)
chunks = [60, *[1] * 30]
first, second, third = (draw(seed, sum(chunks)) for seed in (5, 6, 7))
plain = FastPool(config)

def whole(data):
    return feed(plain.layer_store(), data, chunks)

sample = plain.layer_store()
feed(sample, first, chunks)
config = replace(config, ram_bytes=index_bytes(sample) + 2_500, spill_dir=sys.argv[1])

def spilled(store):
    return store.tokens().cold_disk > 0

def in_child(work):
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

def joined(child):
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child failed"

def part(data, start, stop):
    return tuple(tensor[:, :, start:stop] for tensor in data)
"""

CASES = {
    "a child's pages go to files of its own": """
pool = FastPool(config)
store = pool.layer_store()
before = feed(store, part(first, 0, 70), [60, *[1] * 10])
assert spilled(store)

def work():
    store.reset()
    assert torch.equal(feed(store, second, chunks), whole(second))
    assert spilled(store)

joined(in_child(work))
after = feed(store, part(first, 70, 90), [1] * 20)
assert torch.equal(torch.cat([before, after], dim=2), whole(first))
""",
    "a child that only writes": """
pool = FastPool(config)
store = pool.layer_store()
before = feed(store, part(first, 0, 70), [60, *[1] * 10])
assert spilled(store)
read, write = os.pipe()

def work():
    os.close(write)
    os.read(read, 1)  # until the parent has written to its file
    try:
        for at in range(60):
            length = store.length
            store.append(*part(second, at, at + 1)[:2])
    except KIVUsageError as error:
        assert "forked from" in str(error)
    else:
        raise AssertionError("wrote into the file of the parent")
    assert store.length == length

child = in_child(work)
after = [feed(store, part(first, 70, 80), [1] * 10)]
os.write(write, b".")
joined(child)
after += [feed(store, part(first, 80, 90), [1] * 10)]
assert torch.equal(torch.cat([before, *after], dim=2), whole(first))
""",
    "what the parent wrote is refused by name": """
pool = FastPool(config)
store = pool.layer_store()
feed(store, part(first, 0, 70), [60, *[1] * 10])
assert spilled(store)
store.append(*part(first, 70, 71)[:2])

def work():
    length, memory = store.length, store.memory()
    for call in (
        lambda: store.attend(first[2][:, :, 70:71], scale=SCALE),
        lambda: store.attend(first[2][:, :, 70:71], scale=SCALE, bound=True),
        lambda: store.crop(12),
    ):
        try:
            call()
        except KIVUsageError as error:
            assert "forked from" in str(error)
        else:
            raise AssertionError("read what the parent may have overwritten")
        assert (store.length, store.memory()) == (length, memory)
    pool.close()
    assert pool.memory() == (0, 0, 0)

joined(in_child(work))
store.attend(first[2][:, :, 70:71], scale=SCALE)
after = feed(store, part(first, 71, 90), [1] * 19)
assert torch.equal(after, whole(first)[:, :, 71:])
""",
    "room promised before the fork": """
pool = FastPool(config)
store = pool.layer_store()
key, value, query = part(first, 0, 60)
store.append(key, value)
assert pool.memory().disk and not store.state.pages

def work():
    got = [store.attend(query, scale=SCALE), feed(store, part(first, 60, 90), [1] * 30)]
    assert spilled(store)
    assert torch.equal(torch.cat(got, dim=2), whole(first))

children = [in_child(work), in_child(work)]
work()
for child in children:
    joined(child)
""",
    "RAM alone": """
pool = FastPool(replace(config, ram_bytes=None, spill_dir=None))
store = pool.layer_store()
before = feed(store, part(first, 0, 70), [60, *[1] * 10])

def work():
    store.crop(20)
    feed(store, second, chunks)

child = in_child(work)
after = feed(store, part(first, 70, 90), [1] * 20)
joined(child)
assert torch.equal(torch.cat([before, after], dim=2), whole(first))
""",
}


END = """
import torch
from kiv_fast import FastPool
from kiv_reference import KIVConfig

store = FastPool(KIVConfig(hot_tokens=64)).layer_store()
token = torch.ones(1, 1, 600, 8)
store.append(token, token, valid=torch.arange(600)[None] >= 550)
store.attend(token, scale=0.1)
"""


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("case", CASES)
def test_processes_do_not_share_what_they_write(case: str, tmp_path: Path) -> None:
    done = run(HEAD + CASES[case], tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_store_may_be_alive_when_its_process_ends(tmp_path: Path) -> None:
    # Imports fail by then, of numpy's parts too.
    done = run(END, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
