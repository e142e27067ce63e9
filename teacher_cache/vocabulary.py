"""Check that the teacher has an embedding for every token of the corpus.

Tokenizers with more tokens than the model are common (added tokens, padding); they are harmless until a text uses one.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import UserError
from schemas.manifest import Manifest, TokenizerInfo
from teacher_cache.token_batch import TokenBatch

TOKENIZER_FILES = ("added_tokens.json", "tokenizer_config.json", "tokenizer.json")


def vocabulary_info(tokenizer: Any) -> TokenizerInfo:
    """A tokenizer's vocabulary: its size, and the sha256 of all (id, token) pairs in id order."""
    vocabulary = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    digest = hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
    return TokenizerInfo(fingerprint=digest, vocab_size=vocabulary[-1][0] + 1)


def within_vocabulary(
    batches: Iterable[TokenBatch], plan: Manifest, tokenizer: Any, folder: str
) -> Iterator[TokenBatch]:
    """Pass ``batches`` through. Raises UserError at the first token that the model lacks.

    folder: the tokenizer's, for the message. Free if the tokenizer has no such token.
    """
    size = plan.teacher.vocab_size
    if plan.tokenizer.vocab_size <= size:
        yield from batches
        return
    for batch in batches:
        for at in np.flatnonzero(batch.input_ids >= size)[:1].tolist():
            token_id = int(batch.input_ids[at])
            token = tokenizer.convert_ids_to_tokens(token_id)
            source_id = batch.source_ids[int(np.searchsorted(np.cumsum(batch.num_tokens), at, "right"))]
            raise UserError(
                f"teacher.path: {_where(token, folder)}: token {token_id} {json.dumps(token, ensure_ascii=False)} is "
                f"in the corpus ({source_id}), but {plan.teacher.name} has a vocabulary of {size}, ids 0 to "
                f"{size - 1}; use the teacher's own tokenizer, or remove the token from the texts"
            )
        yield batch


def _where(token: str, folder: str) -> Path:
    """The tokenizer file that defines the token; the folder if none does."""
    spellings = [json.dumps(token, ensure_ascii=ascii_only) for ascii_only in (False, True)]
    for name in TOKENIZER_FILES:
        path = Path(folder, name)
        if path.is_file() and any(spelling in path.read_text(encoding="utf-8") for spelling in spellings):
            return path
    return Path(folder)
