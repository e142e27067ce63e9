"""Text from a cache on a terminal."""

from schemas.errors import printable


def plain(text: str, most: int = 80) -> str:
    """``text`` on one line of at most ``most`` characters; what a terminal would obey rather than print is escaped."""
    shown = printable(text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"
