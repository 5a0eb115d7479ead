"""What the READMEs show is what is run."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def blocks(readme):
    return re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), re.DOTALL)


def test_the_quick_start_of_the_readme_is_the_example():
    shown = blocks("README.md")[0].splitlines()
    script = (ROOT / "examples" / "quick_start.py").read_text(encoding="utf-8").splitlines()
    # The example takes another model from its command line; all else is the same, in the same order.
    wanted = iter(script)
    missing = [line for line in shown if line and not line.startswith("name = ") and line not in wanted]
    assert missing == []
    (name,) = [line.split("= ")[1] for line in shown if line.startswith("name = ")]
    assert name in "\n".join(script)


def test_the_readme_of_the_reference_runs(capsys):
    (block,) = blocks("packages/kiv-reference/README.md")
    exec(compile(block, "packages/kiv-reference/README.md", "exec"), {})
    assert "TierTokens(" in capsys.readouterr().out


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert local
    assert [link for link in local if not (ROOT / link).exists()] == []
