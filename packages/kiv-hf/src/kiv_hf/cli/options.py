"""Options that several commands of ``kiv`` have, and how their values are read."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from kiv_reference.config import KIVConfig

from .units import DTYPES, parse_bytes

KEEP, RETRIEVE, BUDGETS, RUN = "What stays", "What is retrieved", "Budgets", "How to run"


def knob(name: str, text: str, panel: str, **more: Any) -> Any:
    """Make an option whose default is that of `KIVConfig`."""
    default = getattr(KIVConfig, name)
    shown = "none" if default is None else default
    return typer.Option(f"--{name.replace('_', '-')}", help=f"{text} Default: {shown}.", rich_help_panel=panel, **more)


def bytes_knob(name: str, text: str) -> Any:
    """Make an option of a budget."""
    return knob(name, text, BUDGETS, parser=size, metavar="SIZE")


def size(text: str) -> int:
    """Read bytes with a unit, as an option's parser.

    Raises
    ------
    typer.BadParameter
        They are none.
    """
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def one_of(*choices: str) -> Any:
    """Make a callback that takes these words and no others."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(choices)}")
        return value

    return check


HotTokens = Annotated[int | None, knob("hot_tokens", "Recent tokens always attended.", KEEP)]
PageTokens = Annotated[int | None, knob("page_tokens", "Tokens of a page.", KEEP)]
IndexChannels = Annotated[int | None, knob("index_channels", "Channels of a cold key that the index codes.", RETRIEVE)]
CandidateTokens = Annotated[int | None, knob("candidate_tokens", "Cold tokens whose keys a step reads.", RETRIEVE)]
RetrieveTokens = Annotated[int | None, knob("retrieve_tokens", "Cold tokens a step attends exactly.", RETRIEVE)]
Exact = Annotated[bool, typer.Option("--exact", help="Attend to everything.", rich_help_panel=RETRIEVE)]
DtypeName = Annotated[
    str,
    typer.Option(
        help="Of weights, keys and values: auto, float32, bfloat16 or float16.",
        callback=one_of("auto", *DTYPES),
        rich_help_panel=RUN,
    ),
]
OpsName = Annotated[
    str,
    typer.Option(
        help="By what fast computes a step: auto, torch, cpu, which is compiled, or triton.",
        callback=one_of("auto", "torch", "cpu", "triton"),
        rich_help_panel=RUN,
    ),
]
ControlTokens = Annotated[
    bool,
    typer.Option(
        "--control-tokens", help="Let the text speak with control tokens, as <|im_end|>.", rich_help_panel=RUN
    ),
]


def build_config(knobs: dict[str, Any], exact: bool) -> KIVConfig:
    """Build the configuration from the options that were given.

    Raises
    ------
    typer.BadParameter
        Options contradict each other.
    KIVConfigError
        A number is out of its range.
    """
    given = {name: value for name, value in knobs.items() if value is not None}
    if exact:
        if "retrieve_tokens" in given:
            raise typer.BadParameter("--exact attends to everything: leave out --retrieve-tokens")
        given["retrieve_tokens"] = None
    return KIVConfig(**given)
