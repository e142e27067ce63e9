"""Replies without Python that parses leave; of those with code in other languages, the settings decide."""

from collections.abc import Sequence

from schemas.curate_filters import CodeStep
from teacher_cache.curation.code_parser import judge_all
from teacher_cache.curation.curation_step import StepPlace
from teacher_cache.curation.of_layers import LayerStep
from teacher_cache.curation.record import Record
from teacher_cache.curation.versions import versions_fingerprint


class Code(LayerStep):
    """Why a reply leaves is what ``code_rule.judge`` says of it: ``no_code``, ``syntax``, …; nothing is executed."""

    def __init__(self, settings: CodeStep, place: StepPlace) -> None:
        super().__init__(settings.layers, place)
        self._kept = {"", "other_language"} if settings.other_languages == "keep" else {""}

    def fingerprint(self) -> str:
        """The grammar that decides, and the reader of fences."""
        return versions_fingerprint("markdown-it-py")

    def judge(self, records: Sequence[Record]) -> list[str]:
        """See ``LayerStep``."""
        verdicts = judge_all([record.reply for record in records])
        return ["" if verdict.reason in self._kept else verdict.reason for verdict in verdicts]
