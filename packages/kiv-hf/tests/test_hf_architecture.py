"""Imports of `kiv_hf` go one way: no circle, not even of types, and downwards over the order of its parts."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import kiv_hf
import pytest

ROOT = Path(kiv_hf.__file__).parent

ORDER = (
    {"_transformers", "impls"}, {"rope"}, {"guards"}, {"contexts"}, {"cache"}, {"attention"}, {"patches"}, {"routing"},
    {"compare"}, {"kiv_hf"}, {"cli"},
)  # fmt: skip
"""The parts of the package, the lowest first; "kiv_hf" is what its users import."""

Graph = Mapping[str, Iterable[str]]


def modules() -> dict[str, Path]:
    return {".".join(("kiv_hf", *path.relative_to(ROOT).with_suffix("").parts)): path for path in ROOT.rglob("*.py")}


def imported(name: str, source: str) -> Iterator[str]:
    """Yield every dotted name that a module's source imports, whether to run or to check types."""
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).rstrip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def arrows() -> dict[str, set[str]]:
    """Return the modules of the package that each of its modules imports, packages by the name of their folder."""
    files = {name.removesuffix(".__init__"): (name, path) for name, path in modules().items()}
    graph: dict[str, set[str]] = {}
    for short, (name, path) in files.items():
        names = imported(name, path.read_text(encoding="utf-8"))
        found = {next((n for n in (one, one.rpartition(".")[0]) if n in files), None) for one in names}
        graph[short] = {one for one in found if one is not None} - {short}
    return graph


def circle(graph: Graph) -> list[str]:
    """Return the modules of one circle, in order; none if there is no circle."""
    done: set[str] = set()

    def walk(path: list[str]) -> list[str]:
        for target in graph.get(path[-1], ()):
            if target in path:
                return path[path.index(target) :]
            if target not in done and (found := walk([*path, target])):
                return found
        done.add(path[-1])
        return []

    return next((found for start in graph if (found := walk([start]))), [])


def upwards(graph: Graph) -> list[tuple[str, str]]:
    """Return the imports of a higher part by a lower one."""
    level = {part: number for number, parts in enumerate(ORDER) for part in parts}

    def height(module: str) -> int:
        return level[[*module.split("."), module][1]]

    return [(a, b) for a, targets in graph.items() for b in targets if height(a) < height(b)]


def test_there_is_no_circle() -> None:
    graph = arrows()
    assert len(graph) > 40
    assert sum(map(len, graph.values())) > len(graph)
    assert circle(graph) == []


def test_imports_go_down() -> None:
    assert upwards(arrows()) == []


def test_every_part_has_its_place() -> None:
    parts = {[*name.split("."), "kiv_hf"][1] for name in arrows()}
    assert parts == set().union(*ORDER)


@pytest.mark.parametrize("block", ["from .b import x", "if TYPE_CHECKING:\n    from kiv_hf.cache.b import x"])
def test_a_circle_is_found(block: str) -> None:
    graph = {"kiv_hf.cache.a": set(imported("kiv_hf.cache.a", block)), "kiv_hf.cache.b.x": {"kiv_hf.cache.a"}}
    assert circle(graph) == ["kiv_hf.cache.a", "kiv_hf.cache.b.x"]


def test_an_import_upwards_is_found() -> None:
    assert upwards({"kiv_hf.guards.a": ["kiv_hf.rope.b", "kiv_hf.cache.c"]}) == [("kiv_hf.guards.a", "kiv_hf.cache.c")]
