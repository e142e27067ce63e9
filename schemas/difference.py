"""In which settings two documents differ."""

from collections.abc import Iterator


def differences(key: str, before: object, now: object) -> Iterator[tuple[str, object, object]]:
    """The dotted keys, below ``key``, of what differs between two trees of JSON, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        for part in sorted(before.keys() | now.keys()):
            yield from differences(f"{key}.{part}", before.get(part), now.get(part))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for position, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(f"{key}.{position}", old, new)
    elif before != now:
        yield key, before, now
