"""Open a cache as the student reads it."""

from schemas.manifest import Signal
from schemas.train_config import LocalCopiesConfig
from teacher_cache.trust.required import NOTHING, Required
from trainer.data.open_caches import open_cache
from trainer.data.readable import Cache
from trainer.data.retargeted_reader import RetargetedReader
from trainer.data.same_tokenizer_reader import SameTokenizerReader
from trainer.data.student_side import RowForm, StudentSide


def open_for_student(
    url: str,
    signals: tuple[Signal, ...],
    copies: LocalCopiesConfig | None = None,
    required: Required = NOTHING,
    side: StudentSide | None = None,
    rows: RowForm | None = None,
) -> Cache:
    """Open the cache at ``url`` for these signals; with ``side`` and ``rows``, re-targeted to that student's tokens.

    Raises UserError, also if the cache lacks what re-targeting needs.
    """
    if side is None or rows is None:
        return open_cache(url, signals, copies, required)
    more: tuple[Signal, ...] = () if rows.form == "top_k" else (rows.form,)
    cache = open_cache(url, ("tokens", "logits", *more), copies, required)
    kind = RetargetedReader if side.differs(cache.manifest) else SameTokenizerReader
    return kind(cache, side, rows)
