"""How many bytes of text each token of a student stands for: what makes students of different tokenizers comparable."""

from pathlib import Path

import torch

from schemas.manifest import Manifest
from teacher_cache.corpus.token_spans import special_ids, vocabulary_table
from teacher_cache.shards.storage import Storage
from teacher_cache.shards.vocabulary_file import read_vocabulary
from trainer.student.student_tokenizer import load_tokenizer, tokenizer_files


def cache_token_bytes(
    url: str, manifest: Manifest, folder: Path | None, key: str = "student", trust_remote_code: bool = False
) -> torch.Tensor | None:
    """Bytes of each token of the tokenizer that the cache at ``url`` and the student in ``folder`` share, int64 [V].

    From the cache's vocabulary; where there is none (formats 1.0 and 1.1, and caches that are re-targeted to the
    student), ``tokenizer_bytes`` of the folder, if it is given. Raises CorruptCacheError, and UserError as
    ``tokenizer_bytes``.
    """
    if manifest.vocabulary is None:
        return None if folder is None else tokenizer_bytes(folder, key, trust_remote_code)
    return torch.from_numpy(read_vocabulary(Storage(url), manifest).as_text().length_V)


def tokenizer_bytes(folder: Path, key: str = "student", trust_remote_code: bool = False) -> torch.Tensor | None:
    """Bytes of each token of the tokenizer in ``folder``, int64 [V]; 0 for special tokens.

    The blank that SentencePiece puts before a text counts as one. None if there is no tokenizer, or a slow one, whose
    tokens have no known bytes. Raises UserError if it cannot be loaded.
    """
    if not tokenizer_files(folder):
        return None
    tokenizer = load_tokenizer(folder, key, trust_remote_code)
    if not tokenizer.is_fast:
        return None
    return torch.from_numpy(vocabulary_table(tokenizer).without([*special_ids(tokenizer)]).length_V)
