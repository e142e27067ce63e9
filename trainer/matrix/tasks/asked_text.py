"""What a model is asked to write, and what writes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Sampling:
    """How texts are drawn. Temperature 0 is greedy: one text, the most likely tokens."""

    max_new_tokens: int
    samples: int = 1  # of each prompt
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()  # a text ends before the first of these


class Writer(Protocol):
    """A loaded model."""

    def write(self, prompts: Sequence[Sequence[int]], sampling: Sampling, end_ids: Sequence[int]) -> list[list[str]]:
        """The texts that follow each prompt, token ids, in its own list; end_ids: tokens that end one.

        Texts depend on what is asked in this call alone, not on earlier calls.
        """

    def close(self) -> None:
        """Free the model's memory."""


def cut(text: str, stop: Sequence[str]) -> str:
    """``text`` before the first of ``stop``."""
    return text[: min((place for each in stop if (place := text.find(each)) >= 0), default=len(text))]


def seed_of(seed: int, prompt: Sequence[int], number: int = 0) -> int:
    """The seed of a prompt's text ``number``, 63 bits; a function of the ids, so that order does not matter."""
    import xxhash

    ids = ",".join(map(str, prompt))
    return int(xxhash.xxh3_64_intdigest(f"{seed}:{number}:{ids}".encode())) >> 1
