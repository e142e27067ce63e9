"""Numbers in the units of measures, short."""


def value_words(value: float, unit: str) -> str:
    """A value: ``61.2 %`` for shares, else ``1.234``."""
    return f"{100 * value:.1f} %" if unit == "" else f"{value:.4g}"


def points(difference: float, unit: str) -> str:
    """A difference with its sign: points of a percent for shares."""
    return (f"{100 * difference:+.1f}" if unit == "" else f"{difference:+.2g}").replace("-", "−")


def amount(count: int) -> str:
    """A count of parameters: ``134.5 M``."""
    for size, name in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.4g} {name}"
    return str(count)
