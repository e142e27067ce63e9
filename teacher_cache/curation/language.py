"""The language of what is learned, as far as it is prose."""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from schemas.curate_filters import LanguageStep
from schemas.errors import UserError
from teacher_cache.curation.curation_step import StepPlace
from teacher_cache.curation.of_layers import LayerStep
from teacher_cache.curation.record import Record
from teacher_cache.curation.versions import versions_fingerprint

MAX_CHARACTERS = 32_000  # looked at, half at each end: a reply may drift into another language
MAX_LINE = 1000  # longer lines are looked at in parts: patterns on hostile ones take quadratic time
NO_LANGUAGE = "zxx"  # the classifier's label of what is none
_fence = re.compile(r"(`{3,}(?=[^`]*$)|~{3,})\s*(\S?)").match
_formula = re.compile(r"`[^`]*`|\$[^$]*\$|\\\[.*?\\\]|\\\(.*?\\\)|\S+://\S+|\S+@\S+|<[^<>]*>")
_code = re.compile(
    r".*(?:[;{}\\({\[]|\)\s*:)$"  # how lines of code end
    r"|.*(?:[\w)\]\"']\s*(?:[-+*/%&|^<>!:]?=|->|=>|::|&&|\|\|)\s*[\w(\[\"'{>-]|\w\.\w+\(|\w\(\))"
    r"|(?:[@#]\w|//|/\*|>>>|\.\.\. |\$ )"  # how they begin
    r"|(?:import|from|def|class|return|elif|else|except|public|private|const|let|var|func|function|fn|static|void|package"
    r"|namespace|using|pass|break|continue)\b[^.!?]*$"
).match
_letters = re.compile(r"[^\W\d_]").findall


class Language(LayerStep):
    """Text in other languages than those to keep leaves; what has too little prose to tell stays."""

    def __init__(self, settings: LanguageStep, place: StepPlace) -> None:
        super().__init__(settings.layers, place)
        self._settings, self._key = settings, place.key

    def fingerprint(self) -> str:
        """The version of the classifier, whose model is part of it. Raises UserError for languages that it lacks."""
        found = versions_fingerprint("py3langid")
        assert self._identifier
        return found

    def judge(self, records: Sequence[Record]) -> list[str]:
        """See ``LayerStep``."""
        return [self._judge(record.reply) for record in records]

    def _judge(self, text: str) -> str:
        said = prose(text)
        if len(_letters(said)) < self._settings.min_letters:
            return ""
        ranked = self._identifier.rank(said)
        kept = {*self._settings.keep, NO_LANGUAGE}
        if sum(probability for language, probability in ranked if language in kept) >= self._settings.min_probability:
            return ""
        return f"language: {'uncertain' if ranked[0][0] in kept else ranked[0][0]}"

    @cached_property
    def _identifier(self) -> Any:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        if unknown := sorted({*self._settings.keep} - {*identifier.nb_classes}):
            known = ", ".join(sorted({*identifier.nb_classes} - {NO_LANGUAGE}))
            raise UserError(f"{self._key}.keep: {unknown[0]} is not a language that can be told; known are {known}")
        return identifier


def prose(text: str) -> str:
    """The lines of a text that are no code, without formulas, addresses and tags, as far as their form shows them."""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[: MAX_CHARACTERS // 2]}\n{text[-MAX_CHARACTERS // 2 :]}"
    lines, opened = [], ""
    parts = (line[at : at + MAX_LINE] for line in text.split("\n") for at in range(0, len(line), MAX_LINE))
    for part in parts:
        said = part.strip(" \t\r>")
        fence = _fence(said)
        if opened:
            if fence and fence[1].startswith(opened) and not fence[2]:
                opened = ""
        elif fence:
            opened = fence[1]
        elif not _code(said):
            lines.append(_formula.sub(" ", said))
    return "\n".join(lines)
