"""Untrusted text as pages show it."""

from schemas.errors import printable

MOST_NAME = 80  # characters
_KEPT = "\n\t\u200c\u200d"  # of text that is not printable: line breaks, and what joins letters of some scripts


def shown_text(text: str, most: int = MOST_NAME) -> str:
    """Untrusted text: cut, and with control characters, also of direction, made visible."""
    return printable(text[:most], _KEPT) + (" …" if len(text) > most else "")
