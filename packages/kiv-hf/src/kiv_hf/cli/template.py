"""A chat template is a program that came with the model: it runs in a process of its own, within limits.

``python -m kiv_hf.cli.template`` reads a job in JSON from standard input and writes a result in JSON.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from functools import lru_cache
from typing import Any, cast

from kiv_reference.errors import KIVError, KIVUnsupportedError, refuse

CPU_S = 10
"""Seconds of a processor's time that a template may take; those of ordinary models take milliseconds."""

MEMORY_BYTES = 1 << 30
"""Memory that it may take on top of what the process needs."""

LONGEST = 1 << 20
"""Most characters that it may write around the text."""

PATIENCE_S = 300
"""Seconds after which a process that does not end is ended, on systems without limits too."""


def render(tokenizer: Any, content: str) -> str:
    """Return the prompt of a user's turn with `content`, as the tokenizer's chat template has it.

    Raises
    ------
    KIVUnsupportedError
        The template is in error, or takes too long or too much.
    """
    turn = [{"role": "user", "content": content}]
    tokens = {name: _plain(token) for name, token in tokenizer.special_tokens_map.items()}
    try:
        template: str = tokenizer.get_chat_template()
    except ValueError as error:  # several of them, and none is the default
        raise _refusal(tokenizer, str(error)) from error
    job = {"conversations": [turn], "chat_template": template, "add_generation_prompt": True, **tokens}
    result = _run(json.dumps(job))
    if "error" in result:
        raise _refusal(tokenizer, result["error"])
    return result["text"]


@lru_cache(maxsize=16)
def _run(job: str) -> dict[str, str]:
    quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "critical"}
    try:
        child = subprocess.run(
            [sys.executable, "-m", "kiv_hf.cli.template"],
            input=job.encode(), capture_output=True, timeout=PATIENCE_S, env={**os.environ, **quiet}, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"it does not end within {PATIENCE_S} s"}
    try:
        return json.loads(child.stdout)
    except ValueError:
        return {"error": f"it takes more than {CPU_S} s or ends its process (exit code {child.returncode})"}


def _main() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template  # pyright: ignore[reportUnknownVariableType]

    job = json.load(sys.stdin.buffer)
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _limit()
    try:
        rendered: Any = render_jinja_template(**job)
        text: str = rendered[0][0]
        result = {"text": text} if len(text) <= LONGEST else {"error": f"it writes more than {LONGEST:,} characters"}
    except Exception as error:  # whatever the template or what it calls raises is the user's to know
        result = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    json.dump(result, answer)
    answer.close()


def _limit() -> None:
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:  # Windows: only the patience of the caller ends it
        return
    import psutil

    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = int(used.ru_utime + used.ru_stime) + 1 + CPU_S
    memory = psutil.Process().memory_info().vms + MEMORY_BYTES
    for kind, limit in ((resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_AS, memory)):
        with contextlib.suppress(ValueError, OSError):  # systems that have no such limit, or a lower one
            resource.setrlimit(kind, (limit, limit))


def _plain(token: Any) -> Any:
    return [str(one) for one in cast("list[object]", token)] if isinstance(token, (list, tuple)) else str(token)


def _refusal(tokenizer: Any, reason: str) -> KIVError:
    lines = reason.strip().splitlines() or ["it fails"]
    return refuse(
        KIVUnsupportedError,
        "The chat template of a model must render a user's turn",
        f"that of {str(tokenizer.name_or_path)!r}: {lines[0].rstrip('.')}",
        "Correct it (chat_template.jinja or tokenizer_config.json), or choose another model.",
    )


if __name__ == "__main__":
    _main()
