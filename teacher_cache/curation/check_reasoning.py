"""Flags of reasoning: what a machine can check of a chain of verification, each named by what it is.

==============  =====================================================================================================
format          the reply is a chain of verification: all parts are there, in order, with an answer to each question
independent     the answers were made without the draft; or, where a model wrote all at once, they do not quote it
consistent      an answer says what the final reply concludes, and none says otherwise
computed        the arithmetic statements of the reply are right (``arithmetic``); also if there are none
gold            the final reply concludes what is known to be the answer
executed        the final reply's Python passes given tests; only if the settings allow running it
==============  =====================================================================================================

``consistent`` does not say that anything was verified: who errs twice in the same way is consistent.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property

from schemas.cache_config import CorpusConfig
from schemas.curate_reasoning import ReasoningFlag, ReasoningStep
from teacher_cache.corpus.curated_records import Generated
from teacher_cache.corpus.fingerprint import corpus_fingerprint
from teacher_cache.curation import gold_process
from teacher_cache.curation.arithmetic import statements
from teacher_cache.curation.code_rule import fenced
from teacher_cache.curation.conclusions import conclusion, consistent, quotes, says
from teacher_cache.curation.curation_step import LocalStep, StepPlace
from teacher_cache.curation.known_problems import KnownProblems, asked
from teacher_cache.curation.limited_script import answers
from teacher_cache.curation.of_layers import known_layers
from teacher_cache.curation.record import Record
from teacher_cache.curation.versions import versions_fingerprint
from teacher_cache.generated.verification_chain import CHAIN, THOUGHT_END, Chain, parse_chain
from teacher_cache.sandbox.sandboxed import passes

REASONS: dict[ReasoningFlag, str] = {
    "format": "no_chain",
    "independent": "not_independent",
    "consistent": "inconsistent",
    "computed": "miscalculated",
    "gold": "not_gold",
    "executed": "fails_tests",
}
UNKNOWN: dict[ReasoningFlag, str] = {"gold": "gold_unknown", "executed": "tests_unknown"}
MAX_CHARACTERS = 1 << 20  # of a reply; a longer one is no chain
MAX_ANSWER = 1 << 14  # characters that are compared with a gold answer, from the end
MAX_CODE = 1 << 17  # characters in which fenced code is looked for
PYTHON = ("python", "py", "python3")


class Reasoning(LocalStep):
    """Sets the flags of the records of some layers; those without a required one leave."""

    def __init__(self, settings: ReasoningStep, place: StepPlace) -> None:
        self._settings, self._key = settings, place.key
        self._layers = known_layers(settings.layers, place)

    def fingerprint(self) -> str:
        """The bytes of the files with answers and tests, and the version of what compares answers."""
        known = [one for one in (self._settings.gold, self._settings.executed) if one is not None]
        if not known:
            return ""
        files = corpus_fingerprint(CorpusConfig(sources=[one.as_source() for one in known]), self._key)
        libraries = () if self._settings.gold is None else ("math-verify", "latex2sympy2_extended", "sympy")
        return hashlib.sha256(f"{files} {versions_fingerprint(*libraries)}".encode()).hexdigest()

    def changed(self, records: Sequence[Record]) -> list[Record]:
        """Set the flags."""
        flagged = list(records)
        chosen = [place for place, record in enumerate(records) if record.layer in self._layers]
        finals = {}
        for place in chosen:
            record = records[place]
            chain = parse_chain(record.reply) if len(record.reply) <= MAX_CHARACTERS else None
            finals[place] = chain.final if chain else record.reply.rpartition(THOUGHT_END)[2]
            flagged[place] = record.with_flags(**text_flags(record, chain))
        for place, flag in self._gold(records, finals).items():
            flagged[place] = flagged[place].with_flags(gold=flag)
        for place, flag in self._executed(records, finals).items():
            flagged[place] = flagged[place].with_flags(executed=flag)
        return flagged

    def reasons(self, records: Sequence[Record]) -> list[str]:
        """See ``LocalStep``."""
        return [self._reason(record) if record.layer in self._layers else "" for record in records]

    def _reason(self, record: Record) -> str:
        for flag in self._settings.require:
            if flag not in record.flags:
                return UNKNOWN[flag]
            if not record.flags[flag]:
                return REASONS[flag]
        return ""

    def _gold(self, records: Sequence[Record], finals: dict[int, str]) -> dict[int, bool]:
        """The flag of each record whose answer is known."""
        if self._known_answers is None:
            return {}
        known = {place: gold for place in finals if (gold := self._known_answers.of(records[place])) is not None}
        pairs = [(finals[place][-MAX_ANSWER:], gold.rpartition("####")[2].strip()) for place, gold in known.items()]
        found = answers(gold_process.__file__, pairs, f"{self._key}.gold")
        return {
            place: bool(equal) or text_agrees(answer, gold)
            for place, equal, (answer, gold) in zip(known, found, pairs, strict=True)
        }

    def _executed(self, records: Sequence[Record], finals: dict[int, str]) -> dict[int, bool]:
        """The flag of each record whose tests are known."""
        if self._known_tests is None or self._settings.executed is None:
            return {}
        settings, key = self._settings.executed, f"{self._key}.executed"
        isolated = settings.isolation == "required"
        known = {place: tests for place in finals if (tests := self._known_tests.of(records[place])) is not None}
        return {
            place: passes(python_of(finals[place]), tests, isolated, settings.seconds, key)
            for place, tests in known.items()
        }

    @cached_property
    def _known_answers(self) -> KnownProblems | None:
        settings = self._settings.gold
        return None if settings is None else KnownProblems(settings, settings.answer, f"{self._key}.gold")

    @cached_property
    def _known_tests(self) -> KnownProblems | None:
        settings = self._settings.executed
        return None if settings is None else KnownProblems(settings, settings.tests, f"{self._key}.executed")


def text_flags(record: Record, chain: Chain | None) -> dict[str, bool]:
    """The flags that a reply's own text gives."""
    return {
        "format": chain is not None,
        "independent": chain is not None and (made_in_stages(record) or not quotes(chain, asked(record))),
        "consistent": chain is not None and consistent(chain),
        "computed": all(statement.holds for statement in statements(checked(record.reply, chain))),
    }


def checked(reply: str, chain: Chain | None) -> str:
    """The text whose statements must hold: of a chain not the draft, which may err; of others all after a thought."""
    return reply.rpartition(THOUGHT_END)[2] if chain is None else "\n".join((*chain.answers, chain.final))


def made_in_stages(record: Record) -> bool:
    """Whether the prompts of the answers did not hold the draft, as the generation's record says."""
    return isinstance(record.content, Generated) and record.content.reply.made == CHAIN


def text_agrees(answer: str, gold: str) -> bool:
    """Whether the conclusion of an answer is a gold answer in words: ``Paris``."""
    has_words = any(character.isalpha() for character in gold) and "\\" not in gold
    return has_words and says(conclusion(answer), gold) and says(gold, conclusion(answer))


def python_of(text: str) -> str:
    """The Python of a reply: its fenced blocks with that label, or else those without one, or else all of it."""
    blocks = list(fenced(text[:MAX_CODE]))
    labelled = [code for label, code in blocks if label in PYTHON]
    return "\n".join(labelled or [code for label, code in blocks if not label]) or text
