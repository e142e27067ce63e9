"""What makes two tokenizers the same: shared by the side that writes caches and the side that trains from them."""

import hashlib
import json
from typing import Any

from schemas.manifest import TokenizerInfo


def describe_tokenizer(tokenizer: Any) -> TokenizerInfo:
    """The manifest's account of a tokenizer: its fingerprint is the sha256 of every (id, token) pair in order of id."""
    vocabulary = sorted((index, token) for token, index in tokenizer.get_vocab().items())
    digest = hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
    return TokenizerInfo(fingerprint=digest, vocab_size=vocabulary[-1][0] + 1)
