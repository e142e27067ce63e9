"""Texts that were decoded wrongly, and those with characters that stand for lost ones."""

import re
from collections.abc import Callable, Sequence
from functools import cached_property

from schemas.curate_filters import BrokenTextStep
from teacher_cache.curation.curation_step import StepPlace
from teacher_cache.curation.of_layers import LayerStep
from teacher_cache.curation.record import Record
from teacher_cache.curation.versions import versions_fingerprint

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class BrokenText(LayerStep):
    """Repairs what can be repaired, in prompts and replies.

    Others leave: ``mojibake``, ``replacement_characters``, ``control_characters``.
    """

    def __init__(self, settings: BrokenTextStep, place: StepPlace) -> None:
        super().__init__(settings.layers, place)
        self._settings = settings

    def fingerprint(self) -> str:
        """The version of the library that repairs."""
        return versions_fingerprint("ftfy")

    def flagged(self, records: Sequence[Record]) -> list[Record]:
        """Repair all but generated replies, whose token ids are learned."""
        if self._settings.mojibake == "drop":
            return list(records)
        return [record.rewritten(self._repaired) if record.ids is None else record for record in records]

    def judge(self, records: Sequence[Record]) -> list[str]:
        """See ``LayerStep``."""
        return [self._judge(record) for record in records]

    def _judge(self, record: Record) -> str:
        texts = (record.prompt, record.reply)
        length = max(sum(map(len, texts)), 1)
        if any(self._repaired(text) != text for text in texts):
            return "mojibake"
        if sum(text.count("\ufffd") for text in texts) / length > self._settings.max_replacement_share:
            return "replacement_characters"
        if sum(len(_CONTROL.findall(text)) for text in texts) / length > self._settings.max_control_share:
            return "control_characters"
        return ""

    @cached_property
    def _repaired(self) -> Callable[[str], str]:
        """Undoes wrong decoding, and nothing else: quotes, ligatures, entities and line ends are as they were."""
        import ftfy

        config = ftfy.TextFixerConfig(
            unescape_html=False,
            remove_terminal_escapes=False,
            fix_latin_ligatures=False,
            fix_character_width=False,
            uncurl_quotes=False,
            fix_line_breaks=False,
            remove_control_chars=False,
            normalization=None,
        )
        return lambda text: text if text.isascii() else ftfy.fix_text(text, config)
