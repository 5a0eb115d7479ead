"""What the chapters' tests share: refusals, replays, and settings by share."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from hypothesis import event, settings
from kiv_reference.errors import KIVBudgetError, KIVError

from .answers import picked, same_bits
from .profiles import examples

if TYPE_CHECKING:
    from kiv_reference import KIVConfig

    from .driver import Driver
    from .target import Target


def share(part: float) -> settings:
    """Return settings with a part of the profile's examples."""
    return settings(max_examples=max(1, round(examples() * part)))


def refused(
    driver: Driver,
    error: type[KIVError],
    clause: str,
    method: str,
    then: dict[str, Any] | None = None,
    **arguments: Any,
) -> str:
    """Check that the call is refused with `error` and changes nothing, and return the message (SPEC 10.4).

    `then` are the arguments of an attend that may be refused in its place (SPEC 2.5).
    """
    before = driver.store.length, driver.store.tokens(), driver.store.memory(), driver.pool.memory()
    scene, kept = driver.scene, list(driver.operations.calls)
    driver.operations.note(driver.name, method, **arguments)
    if then is not None:
        driver.operations.note(driver.name, "attend", **then)
    never = "False"  # the call before it ends the snippet, as it must
    try:
        getattr(driver.store, method)(**driver.target.place(arguments))
        if then is not None:
            driver.store.attend(**driver.target.place(then))
    except error as raised:
        message = str(raised)
    except Exception as raised:
        what = f"{method} must raise {error.__name__}, raised {type(raised).__name__}: {raised}"
        raise scene.mismatch(clause, what, never) from raised
    else:
        raise scene.mismatch(clause, f"{method} must raise {error.__name__}", never, arguments=arguments)
    driver.operations.calls[:] = kept
    scene.require(len(message.split()) >= 8, "10.4", "an error must name rule, value and remedy", got=message)
    after = driver.store.length, driver.store.tokens(), driver.store.memory(), driver.pool.memory()
    scene.require(after == before, "10.4", "a refused call changed the store", got=after, expected=before)
    driver.again()
    return message


def same_tensors(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    """Say whether two are the same, bit for bit, None with None."""
    return (a is None and b is None) or (a is not None and b is not None and same_bits(a, b))


def same_report(driver: Driver, other: Driver, clause: str) -> None:
    """Check that two stores report the same of their last call, bit for bit."""
    for mine, theirs in zip(driver.store.report.blocks, other.store.report.blocks, strict=True):
        for field in dataclasses.fields(mine):
            a, b = getattr(mine, field.name), getattr(theirs, field.name)
            same = same_tensors(a, b) if isinstance(a, torch.Tensor) or a is None else a == b
            other.scene.require(same, clause, f"another {field.name} for the same tokens", got=b, expected=a)


def same_retrieval(driver: Driver, other: Driver, clause: str) -> None:
    """Check that two stores retrieved the same in their last call."""
    mine, theirs = picked(driver.store), picked(other.store)
    other.scene.require(mine == theirs, clause, "another retrieval for the same tokens", got=theirs, expected=mine)


def budgets_to_try(driver: Driver) -> list[KIVConfig]:
    """Return configurations that differ in budgets only: ample, less and less RAM, a device with little to spare."""
    device, ram, _ = driver.pool.memory()
    ample = {"device_bytes": 4 * device + 4096, "ram_bytes": 4 * ram + 4096}
    tight: list[dict[str, int]] = [{"ram_bytes": share} for share in (ram - ram // 8, ram // 2, 0)]
    tight += [{}, {"device_bytes": device + 4096, "ram_bytes": ram - ram // 5}]
    return [dataclasses.replace(driver.config, **{**ample, **budgets}) for budgets in tight]


def replays_alike(target: Target, driver: Driver) -> int:
    """Replay the operations under other budgets; every output must be the same, bit for bit (SPEC 10.1).

    Returns how many of the budgets held it; those that could not hold it must have refused.
    """
    held = 0
    for config in budgets_to_try(driver):
        pool = target.factory(config)
        try:
            outputs = driver.operations.replay(pool)
        except KIVBudgetError:
            event("placement: budget refused")
            pool.close()
            continue
        held += 1
        memory = pool.memory()
        event(f"placement: ram {memory.ram > 0}, disk {memory.disk > 0}")
        limits = (config.device_bytes, config.ram_bytes, config.disk_bytes)
        fits = all(limit is None or have <= limit for have, limit in zip(memory, limits, strict=True))
        driver.scene.require(fits, "10.2", "a budget is exceeded", got=memory, budgets=limits)
        for number, (a, b) in enumerate(zip(driver.operations.outputs, outputs, strict=True)):
            same = same_bits(a, b)
            driver.scene.require(same, "10.1", f"budgets changed output {number}", budgets=limits, got=b, expected=a)
        pool.close()
    return held
