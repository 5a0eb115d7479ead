"""What was done to a target: the operation log, and a snippet that does it again when pasted."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from kiv_reference import KIVConfig, LayerStore, StorePool

from .target import KNOWN, Target


class OperationLog:
    """Operations on the stores of one pool, in order."""

    def __init__(self, target: Target, config: KIVConfig) -> None:
        self.target = target
        self.config = config
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.stores = ["a"]
        self.outputs: list[torch.Tensor] = []

    def name(self) -> str:
        """Return a name for another store."""
        self.stores.append(f"s{len(self.stores)}")
        return self.stores[-1]

    def note(self, store: str, method: str, **arguments: Any) -> None:
        """Write down a call; tensors are copied, since the caller may change them."""
        kept = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        self.calls.append((store, method, kept))

    def replay(self, pool: StorePool) -> list[torch.Tensor]:
        """Do it all again in another pool; the outputs of `attend`."""
        stores: dict[str, LayerStore] = {"a": pool.layer_store()}
        outputs: list[torch.Tensor] = []
        for name, method, arguments in self.calls:
            given = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in arguments.items() if k != "into"}
            if method == "carry":
                stores[name] = carried(stores[name], pool)
                continue
            result = getattr(stores[name], method)(**given)
            if method == "fork":
                stores[arguments["into"]] = result
            elif method == "attend":
                outputs.append(result.clone())
        return outputs

    def log(self) -> list[str]:
        """Write one short line for each call."""
        return [f"{store}.{method}({_brief(arguments)})" for store, method, arguments in self.calls]

    def snippet(self, claim: str = "") -> str:
        """Write Python that repeats every call, with all numbers, and ends in `claim`: an assertion about the last.

        The names `output` and `report` stand for what the last attend of `claim`'s store gave.
        """
        module, _, attribute = KNOWN.get(self.target.name, self.target.name).partition(":")
        lines = [
            "import torch",
            "from kiv_reference import KIVConfig",
            f"from {module} import {attribute}",
            "nan, inf = float('nan'), float('inf')",
            f"pool = {attribute}({config_source(self.config)})",
            "a = pool.layer_store()",
        ]
        for store, method, arguments in self.calls:
            if method == "carry":
                lines += [f"snapshot, {store} = {store}.snapshot(), pool.layer_store()", f"{store}.restore(snapshot)"]
                continue
            call = ", ".join(f"{k}={_source(v)}" for k, v in arguments.items() if k != "into")
            into = f"{arguments['into']} = " if "into" in arguments else ""
            lines.append(f"{into}{store}.{method}({call})")
            if method == "attend":
                lines[-1] = f"output = {lines[-1]}"
                lines.append(f"report = {store}.report")
        lines += claim.splitlines()
        return "\n".join(lines)


def carried(store: LayerStore, pool: StorePool) -> LayerStore:
    """Return a new store of a pool with the state of another one, which has or had tokens (SPEC 9.8)."""
    snapshot, other = store.snapshot(), pool.layer_store()
    assert snapshot is not None, "a store without a state"
    other.restore(snapshot)
    return other


def config_source(config: KIVConfig) -> str:
    """Return a configuration as Python, without its defaults."""
    fields = [(f.name, getattr(config, f.name)) for f in dataclasses.fields(config)]
    default = KIVConfig()
    return "KIVConfig(" + ", ".join(f"{n}={v!r}" for n, v in fields if v != getattr(default, n)) + ")"


def _source(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return repr(value)
    return f"torch.tensor({value.tolist()}, dtype={value.dtype})"


def _brief(arguments: dict[str, Any]) -> str:
    parts: list[str] = []
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            parts.append(f"{name}={value!r}")
        elif value.dtype == torch.int64:
            parts.append(f"{name}={value.tolist()}")
        elif value.dtype == torch.bool:
            flags = ["".join("1" if flag else "0" for flag in row) for row in value.tolist()]
            parts.append(f"{name}={'/'.join(flags)}")
        else:
            parts.append(f"{name}={str(value.dtype)[6:]}{list(value.shape)}")
    return ", ".join(parts)
