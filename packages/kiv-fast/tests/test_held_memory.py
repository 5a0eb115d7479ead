"""What is booked is what the system holds, in a whole process: /proc/self/smaps beside `memory()` (SPEC 10.3)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MOST_BEYOND = 2 << 20
"""Bytes that the system may hold beside what is booked and a tenth of it: the last memory page of each table (14 a
layer), buffers of files, and about a megabyte that Python's and C's allocators keep of what was freed."""

PROGRAM = """
import ctypes, gc, json, sys
import torch
from kiv_fast import FastPool
from kiv_reference import KIVConfig

torch.set_num_threads(1)
folder, dtype, heads, width, page, tokens, ram = json.loads(sys.argv[1])
dtype, layers = getattr(torch, dtype), 12
config = KIVConfig(hot_tokens=256, page_tokens=page, candidate_tokens=256, retrieve_tokens=64,
                   prefill="retrieve", ram_bytes=ram, spill_dir=folder)
generator = torch.Generator().manual_seed(0)


def draw(n, groups=1):
    return torch.randn(1, heads * groups, n, width, generator=generator).to(dtype)


def held():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps of freed memory is nobody's
    with open("/proc/self/smaps") as lines:
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Anonymous:", "Swap:")))


def fill(store, tokens):
    for n in [128] * (tokens // 128) + [1, 1]:
        store.append(draw(n), draw(n))
    store.attend(draw(1, 2), scale=0.1)


def look(stage):
    print(json.dumps([stage, *pool.memory()[:2], held() - before]))


pool = FastPool(config)
fill(pool.layer_store(), 1024)  # torch takes what it keeps for good
pool.close()
before = held()
pool = FastPool(config)
stores = [pool.layer_store() for _ in range(layers)]
for number, store in enumerate(stores):
    fill(store, tokens)
    if number in (0, layers - 1):
        look(f"layer {number}")
forks = [store.fork() for store in stores]
for fork in forks:
    fork.append(draw(1), draw(1))
look("forks")
del forks, fork
look("forks dropped")
for store in stores:
    store.crop(tokens // 3)
look("crop")
for store in stores:
    fill(store, tokens // 3)
look("filled again")
for store in stores:
    store.reset()
look("reset")
"""

CASES = {
    "bf16": ("bfloat16", 2, 64, 64, 8192),
    "f32, odd": ("float32", 5, 33, 7, 2048),
    "f32, 3 heads": ("float32", 3, 40, 24, 4096),
    "bf16, tiny pages": ("bfloat16", 1, 16, 4, 4096),
}


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads /proc/self/smaps")
@pytest.mark.parametrize(
    ("case", "disk"),
    [(case, disk) for case in CASES for disk in (False, True)],
)
def test_the_system_holds_what_is_booked(case: str, disk: bool, tmp_path: Path) -> None:
    dtype, heads, width, page, tokens = CASES[case]
    ram = None
    if disk:
        size = 2 if dtype == "bfloat16" else 4
        pages = 12 * tokens // page
        # All summaries and the notes about pages, and a third of the pages.
        ram = pages * (heads * width * (12 + 2 * size * page // 3) + 512 + 100 * heads)
    arguments = json.dumps([str(tmp_path), *CASES[case], ram])
    done = subprocess.run([sys.executable, "-c", PROGRAM, arguments], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(looks) == 7
    for stage, device, in_ram, held in looks:
        assert held <= 1.1 * (device + in_ram) + MOST_BEYOND, stage
        assert held >= 0.9 * in_ram, stage
        assert ram is None or in_ram <= ram, stage
    assert tuple(looks[-1][1:3]) == (0, 0)
