import ast
import pathlib

import kiv_fast
from kiv_fast import FastPool
from kiv_reference import KIVConfig, LayerStore, StorePool

SHARED = ("contract", "config", "report", "errors", "checks", "snapshot", "snapshot_checks")
ALLOWED = {f"kiv_reference.{name}" for name in SHARED}


def test_public_names_are_pinned() -> None:
    assert kiv_fast.__all__ == ["Counters", "FastPool", "Tuning"]


def test_nothing_of_the_reference_is_used_but_its_types() -> None:
    files = list(pathlib.Path(kiv_fast.__file__).parent.rglob("*.py"))
    assert len(files) > 10
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            used = {name for name in names if name.split(".")[0] == "kiv_reference"}
            assert used <= ALLOWED, (file.name, used)


def test_the_block_table_has_no_tensor() -> None:
    source = (pathlib.Path(kiv_fast.__file__).parent / "pages" / "block_table.py").read_text()
    modules = [n.module for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)]
    imports = [a.name for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import) for a in n.names]
    assert not any("torch" in (name or "") for name in modules + imports)


def test_the_classes_obey_the_contract() -> None:
    pool: StorePool = FastPool(KIVConfig())
    store: LayerStore = pool.layer_store()
    for kind, thing in ((StorePool, pool), (LayerStore, store)):
        for name in vars(kind):
            assert name.startswith("_") or hasattr(type(thing), name), name
