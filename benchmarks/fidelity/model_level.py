"""Model level: next-token distributions and greedy text under KIV and its rivals, beside full attention."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from kiv_hf import KIVConfig
from tqdm import tqdm

from benchmarks.models import MODELS
from benchmarks.report import Result

from .agreement import Agreement
from .contexts import Context, refusals
from .documents import TEXTS, haystack_tokens
from .journal import Journal, open_journal
from .plan import CONTEXTS, GREEDY_TOKENS, HOT_TOKENS, ONE_TEXT_TOKENS, SCORED_TOKENS, context_lengths, text_count
from .systems import FULL, systems

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def measure(options: argparse.Namespace) -> tuple[Journal, dict[str, dict[str, str]]]:
    """Measure whatever the journal lacks; returns it, and for each model why rivals did not run."""
    scored, greedy = (8, 4) if options.quick else (SCORED_TOKENS, GREEDY_TOKENS)
    journal = open_journal(options, "model")
    missing = {model: refusals(model, systems(model, options.impl)) for model in options.models}
    tested = {m: [s for s in systems(m, options.impl) if s.name not in missing[m]] for m in options.models}
    places = [
        (model, length, text)
        for model in options.models
        for length in context_lengths(model, options.quick, options.longest)
        for text in list(TEXTS)[: text_count(length, options.quick)]
    ]
    with tqdm(total=sum(len(tested[m]) for m, _, _ in places), desc="model level", unit="system") as bar:
        for model, length, text in places:
            keys = {system: (model, str(length), text, system.name) for system in tested[model]}
            if journal.misses(keys.values()):
                ids = haystack_tokens(model, text, length + scored)
                context = Context(model, ids[:, :length])
                agreement = Agreement(context.open(tested[model][0]), ids[:, length:], greedy)
                for system, key in keys.items():
                    bar.set_postfix_str(f"{model} {length:,} {system.name}")
                    journal.measured(key, lambda s=system, a=agreement, c=context: a.record(c.open(s)))
                    bar.update()
                context.close()
            else:
                bar.update(len(keys))
    return journal, missing


def whole(journal: Journal, model: str, length: int, name: str) -> dict[str, Any] | None:
    """One system over all texts at one context: every list joined; None if it was not measured."""
    keys = [(model, str(length), text, name) for text in TEXTS]
    records = [journal[key] for key in keys if key in journal]
    if not records:
        return None
    joined = {part: [x for r in records for x in r[part]] for part in ("divergence", "same_first", "loss")}
    return joined | {"alike": [r["alike"] for r in records]}


def run(options: argparse.Namespace) -> Result:
    """Measure the models over the texts and make the tables."""
    journal, missing = measure(options)
    settings = {"texts": ", ".join(TEXTS), "scored tokens a context": SCORED_TOKENS, "greedy tokens": GREEDY_TOKENS}
    settings |= {"impl": options.impl, "R": KIVConfig().retrieve_tokens, "seconds of measuring": round(journal.seconds)}
    result = Result("fidelity_model", "Model level: a whole model under KIV beside full attention", settings)
    for model in options.models:
        table = result.table(
            f"{MODELS[model].title}: hot {HOT_TOKENS[model]}",
            "context",
            "system",
            "KL, mean (nats)",
            "KL, p90",
            "top-1 agreement",
            "perplexity",
            "against full",
            "greedy tokens before the first other",
        )
        for length in context_lengths(model, options.quick, options.longest):
            base = _perplexity(whole(journal, model, length, FULL))
            series: dict[str, list[float]] = {}
            for system in systems(model, options.impl):
                found = whole(journal, model, length, system.name)
                if found is None:
                    table.add(f"{length:,}", system.name, "not run", None, None, None, None, None)
                    continue
                kl = torch.tensor(found["divergence"])
                perplexity = _perplexity(found)
                table.add(
                    f"{length:,}",
                    system.name,
                    float(kl.mean()),
                    float(kl.quantile(0.9)),
                    f"{sum(found['same_first']) / len(kl):.1%}",
                    perplexity,
                    f"{perplexity / base - 1:+.2%}",
                    ", ".join(str(n) for n in found["alike"]),
                )
                series[system.name] = found["divergence"]
            result.series[f"{model} {length}"] = series
        result.notes += [f"{MODELS[model].title}, {name}: not run: {why}" for name, why in missing[model].items()]
    result.notes.append(
        "The context is prefilled exactly (KIV's default), all that follows goes through the cache under test. Where a "
        "system writes as full attention does, the number of greedy tokens is that of the run. "
        f"Contexts of {ONE_TEXT_TOKENS:,} tokens and more are of one text only, to save time."
    )
    if options.longest is not None:
        beyond = [f"{n:,} ({MODELS[m].title})" for m in options.models for n in CONTEXTS[m] if n > options.longest]
        result.notes.append(f"Left out of this run: contexts of {', '.join(beyond) or 'no other length'}.")
    journal.close()
    return result


def _perplexity(found: dict[str, Any] | None) -> float:
    assert found is not None
    return math.exp(sum(found["loss"]) / len(found["loss"]))


def draw(result: Result) -> Callable[[Figure], None]:
    """Return the painter: the distribution of KL, a panel for each model and context."""

    def paint(figure: Figure) -> None:
        figure.set_size_inches(4.2 * len(result.series), 4.6)
        panels = figure.subplots(1, len(result.series), squeeze=False, sharey=True)[0]
        for axes, (title, found) in zip(panels, result.series.items(), strict=True):
            for name, values in found.items():
                if name != FULL:
                    ordered = sorted(values)
                    axes.plot(ordered, [(i + 1) / len(ordered) for i in range(len(ordered))], label=name)
            axes.set_xscale("symlog", linthresh=1e-4)
            model, length = title.split()
            axes.set_title(f"{MODELS[model].title}, {int(length):,} tokens", fontsize=10)
            axes.set_xlabel("KL from full attention (nats)")
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7.5)
        panels[0].set_ylabel("share of positions")

    return paint
