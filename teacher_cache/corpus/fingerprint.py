"""Fingerprint of a corpus: depends on every byte of every file and every setting, but not on where the files are."""

import hashlib
import json
from pathlib import PurePath
from typing import TypeVar

from schemas.cache_config import CorpusConfig
from schemas.failures import failure
from schemas.generate_config import PromptsConfig
from teacher_cache.corpus.corpus_files import list_files
from teacher_cache.curated.curated_place import read_curated
from teacher_cache.generated.generated_place import read_complete
from teacher_cache.shards.storage import Storage

_CHUNK_BYTES = 1 << 20
Settings = TypeVar("Settings", CorpusConfig, PromptsConfig)


def with_file_names(settings: Settings) -> Settings:
    """The settings with paths reduced to file names, as a manifest shows them."""
    sources = [source.model_copy(update={"path": PurePath(source.path).name}) for source in settings.sources]
    template = None if settings.chat_template is None else PurePath(settings.chat_template).name
    return settings.model_copy(update={"sources": sources, "chat_template": template})


def corpus_fingerprint(config: CorpusConfig, section: str = "corpus") -> str:
    """sha256 (hex) over the settings without paths, and each file's relative name and bytes.

    Streams the files as stored (no decompression, no tokenization); of generated replies and of curated corpora, the
    digest of their manifest stands for all files. section: of the configuration, for messages. Raises UserError when a
    source has no files or one cannot be read.
    """
    settings = config.model_dump(mode="json")
    for source in settings["sources"]:
        del source["path"]
    if config.chat_template is not None:
        settings["chat_template"] = PurePath(config.chat_template).name  # the tokenizer digest covers its content
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for index, source_config in enumerate(config.sources):
        digest.update(b"\0source\0")
        if source_config.format == "generated":
            digest.update(read_complete(Storage(source_config.path), f"{section}.sources.{index}.path").sha256.encode())
            continue
        if source_config.format == "curated":
            digest.update(read_curated(Storage(source_config.path), f"{section}.sources.{index}.path").sha256.encode())
            continue
        for file in list_files(source_config, f"{section}.sources.{index}"):
            content = hashlib.sha256()
            try:
                with file.open() as stream:
                    while chunk := stream.read(_CHUNK_BYTES):
                        content.update(chunk)
            except OSError as error:
                raise failure(error, f"{file.path}: cannot be read") from None
            digest.update(hashlib.sha256(file.name.encode()).digest() + content.digest())
    return digest.hexdigest()
