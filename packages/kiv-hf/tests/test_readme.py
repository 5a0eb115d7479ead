"""What the READMEs show is what is run, links of the documents lead somewhere, and the packages share one version."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).parents[3]


def blocks(readme: str) -> list[Any]:
    return re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), re.DOTALL)


def test_the_quick_start_of_the_readme_is_the_example() -> None:
    shown = blocks("README.md")[0].splitlines()
    script = (ROOT / "examples" / "quick_start.py").read_text(encoding="utf-8").splitlines()
    # The example takes another model from its command line; all else is the same, in the same order.
    wanted = iter(script)
    missing = [line for line in shown if line and not line.startswith("name = ") and line not in wanted]
    assert missing == []
    (name,) = [line.split("= ")[1] for line in shown if line.startswith("name = ")]
    assert name in "\n".join(script)


def test_what_the_readme_says_of_saving_is_in_the_example() -> None:
    script = (ROOT / "examples" / "saved_context.py").read_text(encoding="utf-8")
    assert [line for line in blocks("README.md")[1].splitlines() if line not in script] == []
    assert "save(book)" in script


def test_the_readme_of_the_reference_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("packages/kiv-reference/README.md")
    exec(compile(block, "packages/kiv-reference/README.md", "exec"), {})
    assert "TierTokens(" in capsys.readouterr().out


def test_links_of_the_documents_lead_somewhere() -> None:
    folders = ("*.md", ".github/**/*.md", "docs/**/*.md", "packages/*/*.md", "benchmarks/**/*.md")
    documents = [document for folder in folders for document in ROOT.glob(folder)]
    assert ROOT / "README.md" in documents
    lost = []
    for document in documents:
        links = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
        lost += [(document.name, link) for link in links if "://" not in link and not (document.parent / link).exists()]
    assert lost == []


def test_the_packages_share_one_version() -> None:
    version = (ROOT / "VERSION").read_text(encoding="utf-8").strip()
    assert {metadata.version(f"kiv-{name}") for name in ("reference", "fast", "hf")} == {version}
    pins = {pin for name in ("kiv-fast", "kiv-hf") for pin in metadata.requires(name) or () if pin.startswith("kiv-")}
    assert pins == {f"kiv-reference=={version}", f"kiv-fast=={version}"}
