"""Identity of tokenizers, shared by caching and training.

A cache and a student match if ids mean the same tokens. A plan and its continuation must also tokenize texts alike,
which depends on merges, normalizers, special tokens and chat templates: the tokenizer's files.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas.cache_config import CorpusConfig
from schemas.manifest import TokenizerInfo
from teacher_cache.vocabulary import vocabulary_info

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenization_*.py",
    "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "tekken.json",
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
)  # fmt: skip


def describe_tokenizer(tokenizer: Any) -> TokenizerInfo:
    """Describe a tokenizer for the manifest. Its fingerprint is the sha256 of all (id, token) pairs in id order."""
    return vocabulary_info(tokenizer)


def describe_tokenization(tokenizer: Any, corpus: CorpusConfig, section: str = "corpus") -> TokenizerInfo:
    """The same, plus everything else that determines tokenization: the tokenizer's files and the chat template.

    section: of the configuration. Raises UserError if the configured chat template cannot be read.
    """
    from teacher_cache.corpus.chat import template_source

    template = tokenizer.chat_template
    files = {name: _sha256(path.read_bytes()) for name, path in _files(tokenizer)}
    if corpus.chat_template is not None:
        template = template_source(tokenizer, corpus.chat_template, key=f"{section}.chat_template")
        if not isinstance(tokenizer.chat_template, dict) or corpus.chat_template not in tokenizer.chat_template:
            files[Path(corpus.chat_template).name] = _sha256(str(template).encode())
    digest = None if not template else _sha256(json.dumps(template, sort_keys=True).encode())
    return describe_tokenizer(tokenizer).model_copy(update={"files": files, "chat_template": digest})


def _files(tokenizer: Any) -> Iterator[tuple[str, Path]]:
    """The tokenizer's files with their names relative to its folder (for a hub id, in the hub's local cache)."""
    folder = Path(tokenizer.name_or_path)
    if not folder.is_dir():
        from transformers.utils import cached_file

        found = cached_file(
            tokenizer.name_or_path,
            "tokenizer_config.json",
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is None:
            return
        folder = Path(found).parent
    paths = {path for pattern in FILES for path in folder.glob(pattern) if path.is_file()}
    yield from sorted((path.relative_to(folder).as_posix(), path) for path in paths)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
