"""Names of signals in files of a cache: those that ``CaptureConfig`` has settings for, and ``tokens``."""

from typing import Annotated

from pydantic import AfterValidator, WithJsonSchema

from schemas.cache_config import captured_signals


def signal_names() -> list[str]:
    """The names of all signals, in the order in which they are written."""
    return ["tokens", *captured_signals()]


def _signal(name: str) -> str:
    if name not in signal_names():
        raise ValueError(f"{name!r} is no signal; wanted is one of {', '.join(signal_names())}")
    return name


def _captured_signal(name: str) -> str:
    if name not in captured_signals():
        raise ValueError(f"{name!r} is no captured signal; wanted is one of {', '.join(captured_signals())}")
    return name


Signal = Annotated[str, AfterValidator(_signal), WithJsonSchema({"enum": signal_names(), "type": "string"})]
CapturedSignal = Annotated[
    str, AfterValidator(_captured_signal), WithJsonSchema({"enum": captured_signals(), "type": "string"})
]
