"""Judge replies by ``code_rule`` in a process with limits: what exhausts or crashes the parser costs one reply.

The verdicts on ordinary replies depend on their text and on the version of Python, whose grammar decides.
"""

from collections.abc import Sequence

from teacher_cache.curation import code_rule
from teacher_cache.curation.code_rule import Verdict
from teacher_cache.curation.limited_script import answers

MAX_CHARACTERS = 1 << 20  # of a reply; longer ones are not parsed


def judge_all(replies: Sequence[str]) -> list[Verdict]:
    """The verdict on each reply: ``limits`` if it is too long, or ended the process. Raises MachineError."""
    found = iter(answers(code_rule.__file__, [one for one in replies if len(one) <= MAX_CHARACTERS], "parsing code"))
    return [_verdict(next(found) if len(one) <= MAX_CHARACTERS else None) for one in replies]


def _verdict(answer: list[str] | None) -> Verdict:
    return Verdict("limits") if answer is None else Verdict(*answer)
