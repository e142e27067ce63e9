"""Whether the teacher has an embedding for every token that the corpus is made of.

Tokenizers with more tokens than the model are common (added tokens, padding): they do no harm until a text uses one.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from schemas.errors import UserError
from schemas.manifest import Manifest
from teacher_cache.token_batch import TokenBatch

TOKENIZER_FILES = ("added_tokens.json", "tokenizer_config.json", "tokenizer.json")


def within_vocabulary(
    batches: Iterable[TokenBatch], plan: Manifest, tokenizer: Any, folder: str
) -> Iterator[TokenBatch]:
    """``batches`` as they are. Raises UserError at the first token that the model lacks.

    folder: of the tokenizer. Costs nothing where the tokenizer has no such token.
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
                f"in the corpus ({source_id}), and {plan.teacher.name} has a vocabulary of {size}, ids 0 to "
                f"{size - 1}; give a teacher with its own tokenizer, or take the token out of the texts"
            )
        yield batch


def _where(token: str, folder: str) -> Path:
    """The file of the tokenizer that holds the token; the folder if none is there to look into."""
    spellings = [json.dumps(token, ensure_ascii=ascii_only) for ascii_only in (False, True)]
    for name in TOKENIZER_FILES:
        path = Path(folder, name)
        if path.is_file() and any(spelling in path.read_text(encoding="utf-8") for spelling in spellings):
            return path
    return Path(folder)
