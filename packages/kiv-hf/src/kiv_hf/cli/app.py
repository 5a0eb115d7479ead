"""The commands and options of ``kiv``."""

from __future__ import annotations

import shutil
import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer
from rich.console import Console

from .. import __version__
from ..impls import DEFAULT_IMPL
from .options import (
    BUDGETS,
    KEEP,
    RETRIEVE,
    RUN,
    CandidateTokens,
    ControlTokens,
    DtypeName,
    Exact,
    HotTokens,
    IndexChannels,
    OpsName,
    PageTokens,
    RetrieveTokens,
    build_config,
    bytes_knob,
    knob,
)
from .plan.command import plan_command
from .refusals import one_message
from .text import check_question, read_text

# Nothing above imports torch or transformers, which take seconds: help and mistakes in options are answered at once.

PANEL_COLUMNS = 80
"""Narrower terminals get help without panels, which would cut the names of options there."""

WIDE = shutil.get_terminal_size().columns >= PANEL_COLUMNS

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if WIDE else None,
)


def main() -> None:
    """Run the command line."""
    app()


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kiv {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """KIV: a key-value cache for long contexts."""


@app.command("ask")
def ask_command(  # noqa: PLR0913 - typer makes an option of each
    question: Annotated[str, typer.Argument(help="What you want to know about the text.")],
    model: Annotated[str, typer.Option("--model", "-m", help="A hub id, a local folder, or a .gguf file.")],
    file: Annotated[str, typer.Option("--file", "-f", help="A text file in UTF-8, or - for standard input.")],
    hot_tokens: HotTokens = None,
    sink_tokens: Annotated[int | None, knob("sink_tokens", "First tokens always attended.", KEEP)] = None,
    page_tokens: PageTokens = None,
    index_channels: IndexChannels = None,
    candidate_tokens: CandidateTokens = None,
    retrieve_tokens: RetrieveTokens = None,
    exact: Exact = False,
    max_missed_mass: Annotated[
        float | None, knob("max_missed_mass", "Most attention mass that may be missed, 0 to 1.", RETRIEVE)
    ] = None,
    prefill: Annotated[
        str | None, knob("prefill", "How the text is read: exact, retrieve or window.", RETRIEVE)
    ] = None,
    device_bytes: Annotated[int | None, bytes_knob("device_bytes", "Most device memory of the cache.")] = None,
    ram_bytes: Annotated[int | None, bytes_knob("ram_bytes", "Most RAM of cold pages.")] = None,
    disk_bytes: Annotated[int | None, bytes_knob("disk_bytes", "Most disk space of cold pages.")] = None,
    spill_dir: Annotated[str | None, knob("spill_dir", "Folder of the pages on disk.", BUDGETS)] = None,
    impl: Annotated[
        str, typer.Option(help="Which KIV: reference, fast or compare.", rich_help_panel=RUN)
    ] = DEFAULT_IMPL,
    ops: OpsName = "auto",
    dtype: DtypeName = "auto",
    device: Annotated[
        str, typer.Option(help="As torch names it; auto is cuda where there is one.", rich_help_panel=RUN)
    ] = "auto",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.", rich_help_panel=RUN)] = 256,
    chunk_tokens: Annotated[int, typer.Option(min=1, help="Tokens read at once.", rich_help_panel=RUN)] = 512,
    control_tokens: ControlTokens = False,
) -> None:
    """Ask MODEL a QUESTION about the text in FILE."""
    knobs = {
        "hot_tokens": hot_tokens, "sink_tokens": sink_tokens, "page_tokens": page_tokens,
        "index_channels": index_channels, "candidate_tokens": candidate_tokens, "retrieve_tokens": retrieve_tokens,
        "max_missed_mass": max_missed_mass, "prefill": prefill, "device_bytes": device_bytes, "ram_bytes": ram_bytes,
        "disk_bytes": disk_bytes, "spill_dir": spill_dir,
    }  # fmt: skip
    with one_message():
        config = build_config(knobs, exact)
        wanted = check_question(question)
        text = read_text(file)
        answer = Console(file=sys.stdout)
        with redirect_stdout(sys.stderr):  # whatever a library prints is no part of the answer
            from .ask import Screen, Settings, ask
            from .devices import find_device

            settings = Settings(impl, dtype, find_device(device), chunk_tokens, max_new_tokens, control_tokens, ops)
            ask(model, text, wanted, config, settings, Screen(answer, Console(stderr=True)))


@app.command("doctor")
def doctor_command(
    device: Annotated[str, typer.Option(help="As torch names it; auto is cuda where there is one.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
) -> None:
    """Check whether KIV works on this machine, in under two minutes; exit code 1 if not all is well."""
    with one_message():
        out = Console(file=sys.stdout)
        with redirect_stdout(sys.stderr):
            import torch

            from .devices import find_device
            from .doctor import doctor

            well = doctor(torch.device(find_device(device)), as_json, out, Console(stderr=True))
    raise typer.Exit(0 if well else 1)


app.command("plan")(plan_command)
