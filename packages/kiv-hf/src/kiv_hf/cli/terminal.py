"""What may reach a terminal: text without the characters that drive it."""

from __future__ import annotations

KEPT = "\n\t"
"""Control characters that only lay out text."""

DROPPED = {code: None for code in [*range(0x20), 0x7F, *range(0x80, 0xA0)] if chr(code) not in KEPT}
"""C0, DEL and C1: ESC and CSI begin commands that rename a window, answer for the user or hide what was printed."""


def printable(text: str) -> str:
    """Return `text` without control characters but line breaks and tabs."""
    return text.translate(DROPPED)
