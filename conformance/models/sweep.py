"""Every model type in a process of its own, within a time limit."""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

import torch
import transformers

from .compare import compare
from .outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

LIMIT_S = 600
"""Longest time for one model type. A tiny model takes seconds; a busy machine may take a hundred times as long."""


def sweep(model_types: list[str], limit_s: float = LIMIT_S) -> Iterator[Outcome]:
    """Yield what was found for each type, in order.

    A type runs in a forked process, so that a crash, a hang or a module that fails to load cannot touch its neighbours.
    """
    context = multiprocessing.get_context("fork")
    for model_type in model_types:
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(model_type, theirs))
        process.start()
        theirs.close()
        outcome = Outcome(model_type, reason=f"no answer within {limit_s:.0f} s")
        if mine.poll(limit_s):
            try:
                outcome = mine.recv()
            except EOFError:
                outcome.reason = "the process died"
        process.kill()
        process.join()
        yield outcome


def _work(model_type: str, answer: Connection) -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    transformers.utils.logging.set_verbosity_error()
    answer.send(compare(model_type))
