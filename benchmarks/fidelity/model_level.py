"""Model level: next-token distributions and greedy text of a whole model under KIV, beside full attention."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from benchmarks.models import MODELS
from benchmarks.report import Result

from .capture import TEXTS, haystack_tokens
from .contexts import FULL, HOT_TOKENS, QUICK_TOKENS, Context, System, systems

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTEXTS = {"gemma": (8192, 16384), "smollm2": (4096, 7168)}
"""Short name of a model -> tokens of natural text in the cache."""

SCORED_TOKENS = 96
GREEDY_TOKENS = 48


@dataclass
class Agreement:
    """A system against full attention, over the tokens that follow a context."""

    divergence: torch.Tensor  # KL of each position, nats
    same_first: torch.Tensor  # bool, of each position
    loss: torch.Tensor  # of the text's next token, nats
    first_divergence: list[int]  # greedy tokens alike before the first that differs

    @staticmethod
    def joined(parts: list[Agreement]) -> Agreement:
        """All positions of several contexts."""
        return Agreement(
            torch.cat([p.divergence for p in parts]),
            torch.cat([p.same_first for p in parts]),
            torch.cat([p.loss for p in parts]),
            [n for p in parts for n in p.first_divergence],
        )


def divergence(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(reference ‖ other) in nats of each row of ``[n, V]``."""
    target = reference.log_softmax(dim=1)
    return (target.exp() * (target - logits.log_softmax(dim=1))).sum(dim=1)


def common_prefix(first: list[int], second: list[int]) -> int:
    """Number of tokens before the first that differs."""
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b), len(first))


def agree(context: Context, following: torch.Tensor, tested: list[System], greedy: int) -> dict[str, Agreement]:
    """Every system, full attention first, over the text ``following [1, n]`` and greedy text after it."""
    assert tested[0].name == FULL
    found: dict[str, Agreement] = {}
    reference = torch.empty(0)
    text: list[int] = []
    for system in tested:
        continuation = context.open(system)
        logits = continuation.feed(following)  # [n, V]
        written = continuation.greedy(logits[-1], greedy)
        continuation.close()
        if system.name == FULL:
            reference, text = logits, written
        loss = torch.nn.functional.cross_entropy(logits[:-1], following[0, 1:], reduction="none")
        same = reference.argmax(dim=1) == logits.argmax(dim=1)
        found[system.name] = Agreement(divergence(reference, logits), same, loss, [common_prefix(text, written)])
    return found


def run(options: argparse.Namespace) -> Result:
    """Measure both models over both texts."""
    scored, greedy = (8, 4) if options.quick else (SCORED_TOKENS, GREEDY_TOKENS)
    result = Result(
        "fidelity_model",
        "Model level: a whole model under KIV beside full attention",
        {"texts": ", ".join(TEXTS), "scored tokens a context": scored, "greedy tokens": greedy, "impl": options.impl},
    )
    for model in options.models:
        contexts = [n for n in CONTEXTS[model] if n <= (options.longest or n)]
        if options.quick:
            contexts = [QUICK_TOKENS[model]]
        tested = systems(model, options.impl)
        table = result.table(
            f"{MODELS[model].title}: hot {HOT_TOKENS[model]}, R 256",
            "context",
            "system",
            "KL, mean (nats)",
            "KL, p90",
            "top-1 agreement",
            "perplexity",
            "against full",
            "greedy tokens before the first other",
        )
        for length in contexts:
            parts: dict[str, list[Agreement]] = {system.name: [] for system in tested}
            for text in list(TEXTS)[: 1 if options.quick else None]:
                ids = haystack_tokens(model, text, length + scored)
                context = Context(model, ids[:, :length])
                for name, agreement in agree(context, ids[:, length:], tested, greedy).items():
                    parts[name].append(agreement)
                context.close()
            whole = {name: Agreement.joined(found) for name, found in parts.items()}
            base = float(whole[FULL].loss.mean().exp())
            for name, found in whole.items():
                perplexity = float(found.loss.mean().exp())
                table.add(
                    f"{length:,}",
                    name,
                    float(found.divergence.mean()),
                    float(found.divergence.quantile(0.9)),
                    f"{float(found.same_first.float().mean()):.1%}",
                    perplexity,
                    f"{perplexity / base - 1:+.2%}",
                    ", ".join(str(n) for n in found.first_divergence),
                )
            result.series[f"{model} {length}"] = {name: found.divergence.tolist() for name, found in whole.items()}
    result.notes.append(
        "The context is prefilled exactly (KIV's default), all that follows goes through the cache under test a token "
        "at a time. Where the systems write alike, the number of greedy tokens is that of the run."
    )
    return result


def draw(result: Result) -> Callable[[Figure], None]:
    """Return the painter: the distribution of KL, a panel for each model and context."""

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(result.series), squeeze=False)[0]
        for axes, (title, found) in zip(panels, result.series.items(), strict=True):
            for name, values in found.items():
                if name != FULL:
                    ordered = sorted(values)
                    axes.plot(ordered, [(i + 1) / len(ordered) for i in range(len(ordered))], label=name)
            axes.set_xscale("symlog", linthresh=1e-4)
            axes.set_title(title, fontsize=8)
            axes.set_xlabel("KL from full attention (nats)", fontsize=7)
            axes.tick_params(labelsize=6)
        panels[0].set_ylabel("share of positions")
        panels[0].legend(fontsize=6)

    return paint
