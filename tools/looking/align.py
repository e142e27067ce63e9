"""``cache-tools align``: what share of a student's tokens a cache would teach, with another tokenizer.

Counted are the tokens that the student learns: those of replies, and of plain texts all but the first. Targets
are those of ``teacher_cache.retarget`` at temperature 1.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from schemas.cache_config import TeacherConfig
from schemas.errors import UserError
from teacher_cache.corpus.documents import BadRecord
from teacher_cache.retarget.retargeter import Retargeted, Retargeter
from teacher_cache.retarget.row_targets import TAUGHT, Kind
from teacher_cache.retarget.student_text import StudentTokenizer
from teacher_cache.shards.chats import chat_of
from teacher_cache.shards.marks import up_to_date_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.vocabulary_file import read_vocabulary
from teacher_cache.teacher import load_tokenizer
from tools.looking.sampling import choose_samples, read_each

KIND_NAMES = {
    Kind.EQUAL: "the same bytes as a teacher token",
    Kind.BORDER: "begins where a teacher token does",
    Kind.INSIDE: "begins inside a teacher token",
    Kind.STOP: "the end of a text or turn",
    Kind.BLANK: "blanks and tabs alone",
    Kind.NO_ROW: "no teacher row: template, or not stored",
    Kind.NO_MASS: "no stored token begins with what was read",
    Kind.UNCLEAR: "bytes of the teacher token are not the text's",
}
STRICT, BORDER = (Kind.EQUAL, Kind.STOP), (Kind.EQUAL, Kind.BORDER, Kind.STOP)


@dataclass
class Alignment:
    """Counts over the samples that were read."""

    teacher_tokens: int = 0
    samples: int = 0
    left_out: int = 0  # pieces of chats, and chats that the student's template refuses
    kinds: Counter[Kind] = field(default_factory=Counter)
    crossing: int = 0
    student_tokens: int = 0
    mapped_mass: float = 0.0  # weights on student tokens, of the rows that are taught
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, found: Retargeted, teacher_tokens: int) -> None:
        """Count a sample."""
        learned = np.flatnonzero(found.text.loss_mask_J) + 1
        targets = found.targets
        self.samples += 1
        self.teacher_tokens += teacher_tokens
        self.student_tokens += len(found.text.ids_J)
        self.kinds.update(map(Kind, targets.kind_J[learned].tolist()))
        taught = np.isin(targets.kind_J[learned], TAUGHT)
        self.crossing += int((taught & targets.crosses_J[learned]).sum())
        self.mapped_mass += float(targets.weights_JE[learned][taught].sum())

    def summary(self) -> dict[str, Any]:
        """Counts and shares as plain data; the arms' shares are of the tokens that are not blank."""
        learned = self.kinds.total()
        rated = max(1, learned - self.kinds[Kind.BLANK])
        taught = sum(self.kinds[kind] for kind in TAUGHT)
        return {
            "samples": self.samples,
            "samples_left_out": self.left_out,
            "teacher_tokens": self.teacher_tokens,
            "student_tokens": self.student_tokens,
            "learned_student_tokens": learned,
            "kinds": {kind.name.lower(): self.kinds[kind] for kind in KIND_NAMES},
            "crossing": self.crossing,
            "taught": {
                "strict": sum(self.kinds[kind] for kind in STRICT) / rated,
                "border": sum(self.kinds[kind] for kind in BORDER) / rated,
                "all": taught / rated,
            },
            "mapped_mass": self.mapped_mass / max(1, taught),
            "examples": self.examples,
        }


def align(
    url: str,
    tokenizer: str,
    samples: int | None,
    examples: int = 1,
    trust_remote_code: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Alignment:
    """Align ``samples`` samples of a cache (None: all) with a student's tokenizer.

    Raises UserError if the tokenizer cannot be loaded or gives no spans, or the cache has no vocabulary.
    """
    manifest = up_to_date_manifest(Storage(url))
    if manifest.vocabulary is None:
        raise UserError(
            f"{url}: the cache has no vocabulary.arrow (format 1.{manifest.format_minor}), so only students with the "
            "teacher's own tokenizer can be trained from it; make the cache again"
        )
    reader = CacheReader(url, ("tokens", "logits"), manifest)
    loaded = load_tokenizer(TeacherConfig(path=tokenizer, trust_remote_code=trust_remote_code), key="tokenizer")
    retarget = Retargeter(read_vocabulary(Storage(url), manifest), StudentTokenizer(loaded))
    column = manifest.capture.logits.temperatures.index(1.0)

    def read(number: int) -> tuple[Retargeted | None, int, str]:
        tokens = reader.read_tokens(number)
        chat = chat_of(tokens, reader.where(number, "tokens"))
        try:
            found = retarget(tokens, chat, reader.read_logits(number), column, 1.0)
        except BadRecord:
            found = None
        return found, len(tokens.input_ids), tokens.text

    alignment = Alignment()
    for found, teacher_tokens, text in read_each(choose_samples(reader, samples).tolist(), read, advance):
        if found is None:
            alignment.left_out += 1
            continue
        alignment.add(found, teacher_tokens)
        if len(alignment.examples) < examples:
            alignment.examples.append(example(found, text))
    return alignment


def example(found: Retargeted, text: str, limit: int = 120) -> dict[str, Any]:
    """The beginning of what is learned of a sample: each student token's text, and its kind."""
    data, student = text.encode(), found.text
    learned = np.flatnonzero(student.loss_mask_J) + 1
    tokens = []
    for j in learned[:limit].tolist():
        start, end = int(student.tokens.start_J[j]), int(student.tokens.end_J[j])
        said = data[start:end].decode("utf-8", "backslashreplace") if start >= 0 else ""
        tokens.append({"id": int(student.ids_J[j]), "text": said, "kind": Kind(found.targets.kind_J[j]).name.lower()})
    return {"tokens": tokens}
