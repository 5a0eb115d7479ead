"""How a refusal reaches the user: one message, and exit code 2."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from kiv_reference.errors import KIVError
from rich.console import Console

from .terminal import printable

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def one_message() -> Generator[None]:
    """Silence the libraries; turn a refusal into one message on standard error and exit code 2.

    Raises
    ------
    typer.Exit
        In place of a `KIVError`.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        yield
    except KIVError as error:
        text = printable(f"Error: {error}")
        Console(stderr=True).print(text, style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error
