"""``cache-tools search``: filter the caches of a catalogue."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from schemas.catalog_file import Catalog, CatalogEntry
from schemas.errors import UserError

MIN_DIGITS = 6  # of a fingerprint prefix


@dataclass(frozen=True)
class Wanted:
    """Criteria for a cache; None and () match anything. Text matches as a case-insensitive substring."""

    teacher: str | None = None  # substring of the name, or prefix of the fingerprint
    tokenizer: str | None = None  # prefix of the fingerprint
    licence: str | None = None
    owner: str | None = None
    signals: tuple[str, ...] = ()
    min_tokens: int = 0
    signed_by: str | None = None  # public key

    def fits(self, entry: CatalogEntry) -> bool:
        """Whether a cache meets all criteria."""
        teacher, tokenizer = entry.teacher, entry.tokenizer.fingerprint
        return (
            (self.teacher is None or _within(self.teacher, teacher.name) or _begins(self.teacher, teacher.fingerprint))
            and (self.tokenizer is None or _begins(self.tokenizer, tokenizer))
            and (self.licence is None or _within(self.licence, entry.licence))
            and (self.owner is None or _within(self.owner, entry.owner))
            and {*self.signals} <= {"tokens", *entry.capture}
            and entry.tokens >= self.min_tokens
            and (self.signed_by is None or self.signed_by in [one.public_key for one in entry.signatures])
        )


def _within(part: str, text: str) -> bool:
    return part.casefold() in text.casefold()


def _begins(digits: str, fingerprint: str) -> bool:
    return len(digits) >= MIN_DIGITS and fingerprint.startswith(digits.lower())


def tokenizer_fingerprint(value: str) -> str:
    """``value`` itself if it is a fingerprint or a prefix of one; else the fingerprint of the tokenizer in that folder.

    Raises UserError when it is neither.
    """
    if re.fullmatch(rf"[0-9a-fA-F]{{{MIN_DIGITS},64}}", value):
        return value.lower()
    if not Path(value).is_dir():
        raise UserError(
            f"--tokenizer {value}: wanted a tokenizer's folder, or the first {MIN_DIGITS} or more hex digits of its "
            "fingerprint (for a folder with such a name: ./NAME)"
        )
    from transformers import AutoTokenizer

    from teacher_cache.tokenizer import describe_tokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(value, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises any of a dozen types
        raise UserError(f"--tokenizer {value}: no tokenizer can be loaded from there: {error}") from None
    return describe_tokenizer(tokenizer).fingerprint


def summary(catalog: Catalog) -> str:
    """A few lines on the catalogue's contents, shown when a search finds nothing."""
    lines = [f"{len(catalog.caches)} caches, {len(catalog.problems)} that cannot be read"]
    facts: dict[str, list[str]] = {
        "teachers": [entry.teacher.name for entry in catalog.caches],
        "tokenizers": [entry.tokenizer.fingerprint[:12] for entry in catalog.caches],
        "licences": [entry.licence or "not stated" for entry in catalog.caches],
        "signals": [signal for entry in catalog.caches for signal in entry.capture],
    }
    for title, values in facts.items():
        if values:
            commonest = Counter(values).most_common(10)
            lines.append(f"{title}: " + ", ".join(f"{name} ({count})" for name, count in commonest))
    return "\n".join(lines)
