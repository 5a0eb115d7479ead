"""Compile the operations of `kiv_fast.ops` while a wheel is built, where there is a C compiler.

Without one the wheel is for every system, and has the operations in PyTorch alone. ``KIV_BUILD`` decides: "auto" (as
said), "never", or "always" (a failure ends the build).
"""

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMMON = ("-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mprefer-vector-width=512")
LEVELS = {"plain": (), "avx2": AVX2, "avx512": (*AVX2, *AVX512)}
SUFFIX = {"Darwin": "dylib", "Windows": "dll"}.get(platform.system(), "so")


def compile_library(source: Path, target: Path, levels: Mapping[str, tuple[str, ...]] = LEVELS) -> None:
    """Compile the kernels for each set of instructions, and link them with what chooses among them.

    Raises
    ------
    OSError, subprocess.CalledProcessError
        There is no compiler, or it failed.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    intel = platform.machine().lower() in ("x86_64", "amd64")
    with tempfile.TemporaryDirectory() as folder:
        objects = [str(Path(folder) / "library.o")]
        subprocess.run([*compiler, *COMMON, "-c", str(source / "library.c"), "-o", objects[0]], check=True)
        for level, flags in levels.items():
            if level == "plain" or intel:
                objects.append(str(Path(folder) / f"{level}.o"))
                named = ("-c", str(source / "kernels.c"), f"-DKIV_SUFFIX={level}", "-o", objects[-1])
                subprocess.run([*compiler, *COMMON, *flags, *named], check=True)
        linked = target.with_suffix(".new")
        try:  # another process may load the one that is there, and finds it whole or this one whole
            subprocess.run([*compiler, "-shared", "-pthread", "-o", str(linked), *objects, "-lm"], check=True)
            linked.replace(target)
        finally:
            linked.unlink(missing_ok=True)


class Operations(BuildHookInterface[Any]):
    """Add the library to the wheel, whose name then tells the system that it is for."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel's files are gathered."""
        del version
        wanted = os.environ.get("KIV_BUILD", "auto")
        folder = Path(self.root) / "src" / "kiv_fast" / "ops"
        target = folder / f"libkiv.{SUFFIX}"
        if self.target_name != "wheel" or wanted == "never":
            return
        try:
            compile_library(folder / "csrc", target)
        except (OSError, subprocess.CalledProcessError) as error:
            target.unlink(missing_ok=True)
            if wanted == "always":
                raise
            print(f'kiv-fast has no compiled operations ({error}): a step runs as ops="torch".', file=sys.stderr)
            return
        build_data["artifacts"].append(f"src/kiv_fast/ops/{target.name}")
        build_data["pure_python"] = False
        system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{system}"
