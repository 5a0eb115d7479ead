"""The options of ``kiv plan``."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer
from rich.console import Console

from ..options import (
    CandidateTokens,
    DtypeName,
    Exact,
    HotTokens,
    IndexChannels,
    PageTokens,
    RetrieveTokens,
    build_config,
    one_of,
    size,
)
from ..refusals import one_message

# Nothing above imports torch or transformers (`kiv_hf.cli.app`).

MACHINE = "The machine"


def plan_command(  # noqa: PLR0913 - typer makes an option of each
    model: Annotated[str, typer.Option("--model", "-m", help="A hub id, a local folder, or a .gguf file.")],
    context: Annotated[int, typer.Option(min=1, help="Tokens of prompt and answer.")],
    device_memory: Annotated[
        int | None,
        typer.Option(parser=size, metavar="SIZE", help="Of the GPU. Default: of --card.", rich_help_panel=MACHINE),
    ] = None,
    ram: Annotated[
        int | None, typer.Option(parser=size, metavar="SIZE", help="Default: of this machine.", rich_help_panel=MACHINE)
    ] = None,
    disk: Annotated[
        int | None,
        typer.Option(parser=size, metavar="SIZE", help="For cold pages. Default: no limit.", rich_help_panel=MACHINE),
    ] = None,
    card: Annotated[
        str | None, typer.Option(help="RTX 3060, RTX 4070, RTX 4090 or H100. Default: all.", rich_help_panel=MACHINE)
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="4bit, 8bit or bf16. Default: as they are saved.",
            callback=one_of("4bit", "8bit", "bf16"),
            rich_help_panel=MACHINE,
        ),
    ] = None,
    hot_tokens: HotTokens = None,
    page_tokens: PageTokens = None,
    index_channels: IndexChannels = None,
    candidate_tokens: CandidateTokens = None,
    retrieve_tokens: RetrieveTokens = None,
    exact: Exact = False,
    chunk_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens read at once. Default: found.")] = None,
    dtype: DtypeName = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")] = False,
) -> None:
    """Predict what a context takes, from the model's configuration alone; exit code 1 if it does not fit."""
    knobs = {
        "hot_tokens": hot_tokens, "page_tokens": page_tokens, "index_channels": index_channels,
        "candidate_tokens": candidate_tokens, "retrieve_tokens": retrieve_tokens,
    }  # fmt: skip
    with one_message():
        config = build_config(knobs, exact)
        from .cards import CARDS, find_card

        chosen = None if card is None else find_card(card)
        if card is not None and chosen is None:
            raise typer.BadParameter(f"--card {card!r} is none of {', '.join(one.name for one in CARDS)}")
        if device_memory is None and chosen is None:
            raise typer.BadParameter("give --device-memory, or the --card whose memory is meant")
        memory = device_memory if device_memory is not None else chosen.memory if chosen is not None else 0
        out = Console(file=sys.stdout)
        with redirect_stdout(sys.stderr):
            from .run import Request, plan

            cards = CARDS if chosen is None else (chosen,)
            request = Request(model, context, memory, ram, disk, cards, weights, dtype, chunk_tokens)
            fits = plan(request, config, as_json, out, Console(stderr=True))
    raise typer.Exit(0 if fits else 1)
