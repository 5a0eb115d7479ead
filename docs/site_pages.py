"""What the site shows: the repository's documents, at the paths they have there, so that their links hold in both."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = (
    *("README.md", "SPEC.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/*.md", "docs/*.svg"),
    *("docs/decisions/*.md", "benchmarks/*.md", "benchmarks/fidelity/*.md", "benchmarks/results/*.md"),
    "benchmarks/results/*.png",
)
FOLDER = tempfile.TemporaryDirectory(prefix="kiv-site-")
"""Of the pages; gone with this process."""

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Take the pages together in a folder of their own, and list in the navigation what its folders hold."""
    config.docs_dir = FOLDER.name
    for pattern in PAGES:
        for source in sorted(ROOT.glob(pattern)):
            target = Path(config.docs_dir, source.relative_to(ROOT))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    for section in config.nav:
        for name, folder in section.items():
            if isinstance(folder, str) and Path(config.docs_dir, folder).is_dir():
                pages = Path(config.docs_dir, folder).rglob("*.md")
                pages = sorted(pages, key=lambda page: (page.parent, page.name != "README.md", page))
                section[name] = [str(page.relative_to(config.docs_dir)) for page in pages]
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Leave of a link into the code its text: the site has no code. One that leads nowhere stays, and is an error."""
    here = Path(page.file.src_uri).parent

    def shown(link: re.Match[str]) -> str:
        is_page = Path(config.docs_dir, here, link[2]).is_file()
        return link[0] if is_page or not Path(ROOT, here, link[2]).exists() else link[1]

    return LINK.sub(shown, markdown)
