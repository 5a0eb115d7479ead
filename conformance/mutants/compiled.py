"""How a mutant of the compiled operations is made: its sources with a few words replaced, compiled into a library."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiv_fast.ops import library

from .source import replaced

if TYPE_CHECKING:
    from collections.abc import Generator

PACKAGE = Path(__file__).parents[2] / "packages" / "kiv-fast"
SOURCES = PACKAGE / "src" / "kiv_fast" / "ops" / "csrc"


@cache
def build() -> Any:
    """Return the module that builds the library."""
    spec = importlib.util.spec_from_file_location("kiv_fast_hatch_build", PACKAGE / "hatch_build.py")
    assert spec is not None, "the package has a build hook"
    assert spec.loader is not None, "which is a file"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def best_level() -> str:
    """Return the instructions that this machine would use: a key of the build's ``LEVELS``."""
    operations = library.load()
    return list(build().LEVELS)[0 if operations is None else operations.level]


@dataclass(frozen=True)
class CompiledFault:
    """A fault in the compiled operations.

    Attributes
    ----------
    name : what is wrong, in a few words
    file : of the sources
    old, new : what it says once, and what it says with the fault
    tests : files or node ids, one of which must fail, and options for pytest
    level : the instructions whose code has the fault; "" if all have
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    level: str = ""

    def check(self) -> None:
        """Raise if the fault can no longer be made."""
        self._faulty()

    def _faulty(self) -> str:
        source = (SOURCES / self.file).read_text(encoding="utf-8")
        return replaced(source, self.old, self.new, self.file)

    @contextmanager
    def applied(self) -> Generator[None]:
        """Have a library with the fault loaded instead of the right one while this lasts.

        The kernels are compiled for one set of instructions, which stands for the others too.
        """
        level = self.level or best_level()
        others = (f"kiv_operations_{other}" for other in build().LEVELS if other != level)
        alias = f'__attribute__((alias("kiv_operations_{level}")))'
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "csrc", Path(folder) / "libkiv.so"
            shutil.copytree(SOURCES, source)
            (source / self.file).write_text(self._faulty(), encoding="utf-8")
            with (source / "kernels.c").open("a", encoding="utf-8") as kernels:
                kernels.writelines(f"extern const Operations {other} {alias};\n" for other in others)
            build().compile_library(source, target, {level: build().LEVELS[level]})
            before = os.environ.get("KIV_LIBRARY")
            os.environ["KIV_LIBRARY"] = str(target)
            library.load.cache_clear()
            assert library.load() is not None, library.why_not()
            try:
                yield
            finally:
                del os.environ["KIV_LIBRARY"]
                if before is not None:
                    os.environ["KIV_LIBRARY"] = before
                library.load.cache_clear()
