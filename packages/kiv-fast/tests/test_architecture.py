"""The order of kiv_fast's parts: imports go downwards only, those for a type checker too."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import kiv_fast
import pytest

ROOT = Path(kiv_fast.__file__).parent
ABOVE = ("kiv_fast", "pool", "store", "store_view", "shared", "guard", "decode", "together", "call")
MIDDLE = ("snapshots", "adoption", "state", "growing", "tokens", "trace", "partition")
BELOW = ("retrieval", "attention", "cold", "index", "tiers", "pages", "ops", "device", "memory")
LAYERS = (*ABOVE, *MIDDLE, *BELOW, "interrupts", "tuning", "shape")
"""Sub-packages and the modules beside them: each imports from those to its right alone."""


def dotted(parts: list[str]) -> str:
    return ".".join(parts).removesuffix(".__init__")


def arrows(sources: dict[str, str]) -> set[tuple[str, str]]:
    """Tell which module, of these files of one folder, imports which, wherever in its text."""
    modules = {dotted(path.removesuffix(".py").split("/")) for path in sources}
    found: set[tuple[str, str]] = set()
    for path, source in sources.items():
        parts = path.removesuffix(".py").split("/")
        for node in ast.walk(ast.parse(source)):
            names: list[list[str]] = []
            if isinstance(node, ast.ImportFrom):
                base = parts[: len(parts) - node.level] if node.level else []
                base += node.module.split(".") if node.module else []
                names = [[*base, alias.name] for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name.split(".") for alias in node.names]
            for name in names:
                while name and dotted(name) not in modules:
                    name = name[:-1]  # what is no module comes from the one that holds it
                if name:
                    found.add((dotted(parts), dotted(name)))
    return found


def upwards(found: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Tell which of these imports go against `LAYERS`."""

    def height(module: str) -> int:
        return LAYERS.index(module.split(".")[1] if "." in module else module)

    return sorted(arrow for arrow in found if height(arrow[1]) < height(arrow[0]))


def check_circles(found: set[tuple[str, str]]) -> None:
    """Raise `CycleError` if modules import each other."""
    graph: dict[str, set[str]] = {}
    for importer, imported in found:
        graph.setdefault(importer, set()).add(imported)
    TopologicalSorter(graph).prepare()


def test_imports_go_downwards_and_not_in_circles() -> None:
    found = arrows({path.relative_to(ROOT.parent).as_posix(): path.read_text() for path in ROOT.rglob("*.py")})
    assert len(found) > 100
    assert not upwards(found)
    check_circles(found)


@pytest.mark.parametrize("line", ["from ..pool import A", "from .. import pool", "import kiv_fast.pool"])
def test_an_import_upwards_is_found(line: str) -> None:
    hidden = f"if TYPE_CHECKING:\n    {line}"
    found = arrows({"kiv_fast/pool.py": "", "kiv_fast/tiers/ram.py": hidden})
    assert upwards(found) == [("kiv_fast.tiers.ram", "kiv_fast.pool")]


def test_a_circle_within_a_layer_is_found() -> None:
    hidden = "def f():\n    from . import a"
    with pytest.raises(CycleError):
        check_circles(arrows({"kiv_fast/tiers/a.py": "from .b import B", "kiv_fast/tiers/b.py": hidden}))
