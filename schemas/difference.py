"""Differences between two documents."""

from collections.abc import Iterator, Mapping


def differences(key: str, before: object, now: object) -> Iterator[tuple[str, object, object]]:
    """Yield (dotted key below ``key``, old value, new value) for each difference between two JSON trees."""
    if isinstance(before, dict) and isinstance(now, dict):
        for part in sorted(before.keys() | now.keys()):
            yield from differences(f"{key}.{part}", before.get(part), now.get(part))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for position, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(f"{key}.{position}", old, new)
    elif before != now:
        yield key, before, now


def said_differences(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """What the keys of ``before`` were at a place and are now, for a message; "" if nothing differs."""
    found = [each for key, old in before.items() for each in differences(key, old, now[key])]
    return "; ".join(f"{name}: {old!r} there, {new!r} now" for name, old, new in found)
