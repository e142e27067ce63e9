"""Replies without Python that parses leave; of those with code in other languages, the settings decide."""

from collections.abc import Sequence

from schemas.curate_filters import CodeStep
from teacher_cache.curation.code_parser import judge_all
from teacher_cache.curation.curation_step import StepPlace
from teacher_cache.curation.of_layers import LayerStep
from teacher_cache.curation.record import Record
from teacher_cache.curation.versions import versions_fingerprint

PYTHON = "python"


class Code(LayerStep):
    """Flags records with what ``code_rule.judge`` says of the reply; nothing is executed.

    ``code``: ``python``, or why the reply holds none. ``code_detail``: the parser's message, or the other languages.
    """

    def __init__(self, settings: CodeStep, place: StepPlace) -> None:
        super().__init__(settings.layers, place)
        self._stays = {PYTHON, "other_language"} if settings.other_languages == "keep" else {PYTHON}

    def fingerprint(self) -> str:
        """The grammar that decides, and the reader of fences."""
        return versions_fingerprint("markdown-it-py")

    def flagged(self, records: Sequence[Record]) -> list[Record]:
        """See ``LayerStep``."""
        verdicts = judge_all([record.reply for record in records])
        return [
            record.with_flags(
                code=verdict.reason or PYTHON, **({"code_detail": verdict.detail} if verdict.detail else {})
            )
            for record, verdict in zip(records, verdicts, strict=True)
        ]

    def judge(self, records: Sequence[Record]) -> list[str]:
        """See ``LayerStep``."""
        codes = [str(record.flags["code"]) for record in records]
        return ["" if code in self._stays else code for code in codes]
