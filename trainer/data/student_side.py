"""The student's side of caches that were made with another tokenizer: its tokenizer, and how rows are to be read."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from schemas.cache_config import CaptureConfig, CorpusConfig, SourceConfig
from schemas.errors import UserError
from schemas.manifest import Manifest, TokenizerInfo
from schemas.train_config import TargetForm
from teacher_cache.retarget.row_targets import Align
from teacher_cache.retarget.student_text import StudentTokenizer
from teacher_cache.tokenizer import describe_tokenization
from trainer.data.mixture import names_tokens
from trainer.student.student_tokenizer import load_tokenizer, tokenizer_files


class RowForm(NamedTuple):
    """What the rows of a batch hold of the teacher."""

    form: TargetForm  # what weights are taken from; final: whole distributions, where a row is one
    temperature: float
    entries: int  # weights per row
    with_untaught: bool  # rows that no teacher teaches count, too: for hard labels, and for pieces
    with_pieces: bool = False  # pieces of text that are whole tokens for both, for losses.alm
    align: Align = Align.ALL


@dataclass(frozen=True)
class StudentSide:
    """A student's tokenizer, its identity, and how texts are read with it."""

    folder: Path
    key: str  # the setting that names the folder
    trust_remote_code: bool
    max_tokens: int | None  # longer samples are cut
    kept: Path | None  # folder for re-tokenised texts

    @cached_property
    def loaded(self) -> Any:
        """The tokenizer as transformers has it. Raises UserError if it cannot be loaded."""
        return load_tokenizer(self.folder, self.key, self.trust_remote_code)

    @cached_property
    def info(self) -> TokenizerInfo:
        """Everything that determines the student's tokens."""
        return describe_tokenization(self.loaded, CorpusConfig(sources=[SourceConfig(path="the cache")]))

    @cached_property
    def tokenizer(self) -> StudentTokenizer:
        """The tokenizer. Raises UserError if it gives no spans."""
        return StudentTokenizer(self.loaded)

    @property
    def digest(self) -> str:
        """Digest of everything that determines the student's tokens: vocabulary, merges, normaliser, template."""
        return hashlib.sha256(self.info.model_dump_json().encode()).hexdigest()

    def differs(self, manifest: Manifest) -> bool:
        """Whether a cache was made with another tokenizer."""
        return names_tokens(manifest.tokenizer) != names_tokens(self.info)

    def check_embedding(self, rows: int) -> None:
        """Raise UserError if the model's embedding has fewer rows than the tokenizer has tokens."""
        if rows < self.info.vocab_size:
            raise UserError(
                f"{self.key}: {self.folder}: the tokenizer has {self.info.vocab_size} tokens, but the model an "
                f"embedding of {rows}; enlarge it, or use the model's own tokenizer"
            )

    def __getstate__(self) -> dict[str, object]:
        """Workers load the tokenizer again."""
        return {name: value for name, value in vars(self).items() if name not in ("loaded", "tokenizer")}


def student_side(
    folder: Path, key: str, trust_remote_code: bool, max_tokens: int | None, kept: str | None = None
) -> StudentSide:
    """Describe the tokenizer in ``folder``. Raises UserError if there is none."""
    if not tokenizer_files(folder):
        raise UserError(
            f"{key}: {folder}: has no tokenizer, which data.align needs to read caches for the student; copy the "
            "tokenizer's files there"
        )
    side = StudentSide(folder, key, trust_remote_code, max_tokens, None if kept is None else Path(kept))
    _ = side.info  # travels to worker processes
    return side


def entries_of(capture: CaptureConfig, form: TargetForm) -> int:
    """Weights per row of a cache after re-targeting: one more than stored, for tokens that cross."""
    k = capture.logits.k
    if form == "draws":
        assert capture.draws is not None
        k = capture.draws.n + (k if capture.draws.region == "tail" else 0)
    return k + 1


def as_students(manifest: Manifest, side: StudentSide, rows: RowForm) -> Manifest:
    """The manifest as if a teacher with the student's tokenizer had written the cache; its digest stays.

    Of the side signals ``final`` is left, if it is read; draws are entries.
    """
    capture, corpus = manifest.capture, manifest.corpus
    logits = capture.logits.model_copy(update={"k": rows.entries, "temperatures": [rows.temperature]})
    others = [name for name in capture.side_settings if (name, rows.form) != ("final", "final")]
    longest = side.max_tokens or corpus.settings.max_tokens
    settings = corpus.settings.model_copy(update={"max_tokens": longest})
    return manifest.model_copy(
        update={
            "tokenizer": side.info,
            "vocabulary": None,  # it is the teacher's
            "teacher": manifest.teacher.model_copy(update={"vocab_size": side.info.vocab_size}),
            "capture": capture.model_copy(update={**dict.fromkeys(others), "logits": logits}),
            "corpus": corpus.model_copy(update={"settings": settings}),
        }
    )
