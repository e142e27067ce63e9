"""``cache-tools align``: what share of a student's tokens a cache would teach, with another tokenizer.

Counted are the tokens that the student learns: those of replies, and of plain texts all but the first. Targets
are those of ``teacher_cache.retarget`` at temperature 1.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from schemas.cache_config import TeacherConfig
from schemas.errors import UserError
from teacher_cache.corpus.documents import BadRecord
from teacher_cache.records import TokenSample
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
    left_out: int = 0  # chats without messages, and those that the student's template refuses
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


class Aligned(NamedTuple):
    """A sample of the cache, and as the student reads it; None: it is left out."""

    sample: TokenSample
    found: Retargeted | None


class Aligner:
    """Reads samples of a cache as a student with another tokenizer would be taught them."""

    def __init__(self, reader: CacheReader, tokenizer: str, trust_remote_code: bool = False, key: str = "tokenizer"):
        """``reader`` has tokens and logits open; ``key`` names the student's folder in errors.

        Raises UserError if the tokenizer cannot be loaded or gives no spans, or the cache has no vocabulary.
        """
        manifest, storage = reader.manifest, Storage(reader.url)
        if manifest.vocabulary is None:
            raise UserError(
                f"{storage.url}: the cache has no vocabulary.arrow (format 1.{manifest.format_minor}), so only "
                "students with the teacher's own tokenizer can be trained from it; `cache-tools upgrade` adds it"
            )
        self._reader = reader
        self.tokenizer = load_tokenizer(TeacherConfig(path=tokenizer, trust_remote_code=trust_remote_code), key=key)
        self._retarget = Retargeter(read_vocabulary(storage, manifest), StudentTokenizer(self.tokenizer))
        self._column = manifest.capture.logits.temperatures.index(1.0)

    def read(self, number: int) -> Aligned:
        """Sample ``number``. Raises CorruptCacheError."""
        tokens = self._reader.read_tokens(number)
        chat = chat_of(tokens, self._reader.where(number, "tokens"))
        try:
            found = self._retarget(tokens, chat, self._reader.read_logits(number), self._column, 1.0)
        except BadRecord:
            found = None
        return Aligned(tokens, found)


def align(
    url: str,
    tokenizer: str,
    samples: int | None,
    examples: int = 1,
    trust_remote_code: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Alignment:
    """Align ``samples`` samples of a cache (None: all) with a student's tokenizer; raises as ``Aligner``."""
    reader = CacheReader(url, ("tokens", "logits"), up_to_date_manifest(Storage(url)))
    return measure_alignment(reader, Aligner(reader, tokenizer, trust_remote_code), samples, examples, advance)


def measure_alignment(
    reader: CacheReader,
    aligner: Aligner,
    samples: int | None,
    examples: int = 0,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Alignment:
    """Count over ``samples`` samples, evenly spaced (None: all)."""
    alignment = Alignment()
    for sample, found in read_each(choose_samples(reader, samples).tolist(), aligner.read, advance):
        if found is None:
            alignment.left_out += 1
            continue
        alignment.add(found, len(sample.input_ids))
        if len(alignment.examples) < examples:
            alignment.examples.append(example(found, sample.text))
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
