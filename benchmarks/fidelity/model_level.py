"""Model level: next-token distributions of a whole model over natural text, beside full attention's."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from kiv_hf import KIVConfig
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks.models import MODELS
from benchmarks.original import OriginalPool
from benchmarks.report import SHARES, Result, quantiles

from .contexts import FULL, Context, System, asked
from .documents import TEXTS, haystack_tokens
from .journal import Record, open_journal

HOT_TOKENS = {"gemma": 2048, "smollm2": 1024}
"""Short name of a model -> hot window of all systems."""

CONTEXTS = {"gemma": (8192, 32768), "smollm2": (4096, 7680)}
"""Tokens of natural text before what is scored."""

QUICK_TOKENS = {"gemma": 2560, "smollm2": 1536}
SCORED_TOKENS = 64


def systems(model: str, impl: str) -> list[System]:
    """Full attention first, then KIV as it is shipped but for the hot window, and the original's rule."""
    hot = HOT_TOKENS[model]
    pool = partial(OriginalPool, hot_tokens=hot)
    return [
        System(FULL),
        System("KIV", asked(hot_tokens=hot), impl),
        System("the original KIV's rule", KIVConfig(), pool),
    ]


def divergence(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(reference ‖ other) in nats of each row of ``[n, V]``."""
    target = reference.log_softmax(dim=1)
    return (target.exp() * (target - logits.log_softmax(dim=1))).sum(dim=1)


def agreement(reference: torch.Tensor, logits: torch.Tensor, following: torch.Tensor) -> dict[str, list[Any]]:
    """Divergence and loss in nats and agreement of the first token, of logits ``[n, V]`` after ``following [1, n]``."""
    loss = torch.nn.functional.cross_entropy(logits[:-1], following[0, 1:], reduction="none")
    same = reference.argmax(dim=1) == logits.argmax(dim=1)
    kl = divergence(reference, logits)
    return {"divergence": kl.tolist(), "same_first": same.tolist(), "loss": loss.tolist()}


def measure(model: str, length: int, text: str, scored: int, impl: str) -> Record:
    """Measure all systems after one context."""
    ids = haystack_tokens(model, text, length + scored)
    following = ids[:, length:]
    context = Context(model, ids[:, :length])
    found: Record = {}
    reference = torch.empty(0)
    for system in systems(model, impl):
        continuation = context.open(system)
        logits = continuation.feed(following)
        continuation.close()
        reference = logits if system.name == FULL else reference
        found[system.name] = agreement(reference, logits, following)
    context.close()
    return found


def run(options: argparse.Namespace) -> Result:
    """Measure the models over the texts and make the tables."""
    texts, scored = (list(TEXTS)[:1], 8) if options.quick else (list(TEXTS), SCORED_TOKENS)
    journal = open_journal(options, "model")
    settings = {"texts": ", ".join(texts), "scored tokens a context": scored, "impl": options.impl}
    title = "Model level: a whole model under KIV beside full attention"
    result = Result("fidelity_model", title, settings)
    for model in options.models:
        lengths = (QUICK_TOKENS[model],) if options.quick else CONTEXTS[model]
        table = result.table(
            f"{MODELS[model].title}: hot {HOT_TOKENS[model]}",
            *("context", "system", "KL, mean (nats)", "KL, p90", "top-1 agreement", "perplexity", "against full"),
        )
        for length in tqdm([n for n in lengths if n <= (options.longest or n)], desc=model, unit="context"):
            records = [
                journal.measured(
                    (model, str(length), text, str(scored)),
                    lambda m=model, n=length, t=text: measure(m, n, t, scored, options.impl),
                )
                for text in texts
            ]
            names = [system.name for system in systems(model, options.impl)]
            joined = {name: _joined([record[name] for record in records]) for name in names}
            for name, found in joined.items():
                kl, perplexity = torch.tensor(found["divergence"]), _perplexity(found)
                same = f"{sum(found['same_first']) / len(kl):.1%}"
                against = f"{perplexity / _perplexity(joined[FULL]) - 1:+.2%}"
                table.add(f"{length:,}", name, float(kl.mean()), float(kl.quantile(0.9)), same, perplexity, against)
            curves = {name: quantiles(found["divergence"]) for name, found in joined.items() if name != FULL}
            result.series[f"{model} {length}"] = curves
    journal.close()
    result.notes.append(
        "The context is prefilled exactly (KIV's default), all that follows goes through the cache under test."
    )
    return result


def _joined(records: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    return {part: [value for record in records for value in record[part]] for part in records[0]}


def _perplexity(found: dict[str, list[float]]) -> float:
    return math.exp(sum(found["loss"]) / len(found["loss"]))


def draw(figure: Figure, result: Result) -> None:
    """Draw the distribution of KL, a panel for each model and context."""
    figure.set_size_inches(4.2 * len(result.series), 4.6)
    panels = figure.subplots(1, len(result.series), squeeze=False, sharey=True)[0]
    for axes, (title, curves) in zip(panels, result.series.items(), strict=True):
        for name, values in curves.items():
            axes.plot(values, SHARES, label=name)
        axes.set_xscale("symlog", linthresh=1e-4)
        model, length = title.split()
        axes.set_title(f"{MODELS[model].title}, {int(length):,} tokens", fontsize=10)
        axes.set_xlabel("KL from full attention (nats)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7.5)
    panels[0].set_ylabel("share of positions")
