"""What is known of one model type."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Outcome:
    """What was found for one model type.

    Attributes
    ----------
    verdict : str
        "supported": KIV layers, and the numbers of the stock cache. "delegated": the same numbers, but the model has
        no layer of full attention. "refused": an error that names the way out. "no cache": transformers itself
        cannot run the model with a DynamicCache. "not tried": no tiny model could be built. "wrong": other numbers,
        or an error that is not KIV's.
    part : str
        Class that stands for the type and why, if only a part of the model takes text alone.
    kinds : list of str
        Kinds of attention that the model uses.
    reason : str
        Text of the error, or what differs.
    ratio : float
        Largest distance from the stock logits, in units of the bound; at most 1 if the numbers are equal.
    kiv_layers, cold_tokens : int
        Number of KIV layers, and cold positions of the first one after a text of `TOKENS` tokens.
    control : float
        Distance from the stock logits, in units of the bound, when nearly every cold token is left out on purpose.
    fast : int
        Number of selections under a small budget in which the fast implementation was found equal to the reference.
    """

    model_type: str
    verdict: str = "wrong"
    kinds: list[str] = field(default_factory=list)
    reason: str = ""
    ratio: float = 0.0
    kiv_layers: int = 0
    cold_tokens: int = 0
    control: float = 0.0
    fast: int = 0
    part: str = ""
