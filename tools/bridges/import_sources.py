"""What an import reads: the manifest it leads to, and the samples."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from schemas.cache_config import CaptureConfig
from schemas.errors import UserError
from schemas.load import validate
from schemas.manifest import Manifest
from teacher_cache.plan import NO_TOTALS
from teacher_cache.records import LogitsSample, TokenSample
from tools.bridges import parquet
from tools.bridges.parquet_files import open_file, read_parts


class Found(NamedTuple):
    """A sample, and where it came from, for messages."""

    where: str
    rows_done: int  # of all files
    tokens: TokenSample
    logits: LogitsSample


class Source(ABC):
    """Files of one layout."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.n_rows = 0
        for file in files:
            with open_file(file) as opened:
                self.n_rows += opened.metadata.num_rows

    @abstractmethod
    def plan(self) -> Manifest:
        """The manifest of a cache that nothing was imported to yet."""

    @abstractmethod
    def samples(self) -> Iterator[Found]:
        """Every sample. Raises UserError when a file is not of the layout."""

    @abstractmethod
    def finished(self, manifest: Manifest, longest: int) -> Manifest:
        """``manifest``, of all samples, of up to ``longest`` tokens, with what is known only now; with ``derived``."""


class ParquetSource(Source):
    """What ``cache-tools export --to parquet`` wrote."""

    def __init__(self, files: list[Path], tokens_per_shard: int) -> None:
        """Raises UserError unless all files are of one export."""
        super().__init__(files)
        self._tokens_per_shard = tokens_per_shard
        facts = [parquet.facts_of(open_file(file).schema_arrow.metadata, str(file)) for file in files]
        self._facts = facts[0]
        for file, others in zip(files, facts, strict=True):
            if others != self._facts:
                raise UserError(f"{file}: was exported from another cache than {files[0]}; import one export at a time")

    def plan(self) -> Manifest:
        """As the exported cache's manifest, with its logits alone. Raises UserError when that cannot be one."""
        facts = self._facts
        tree = {
            "teacher": facts.teacher,
            "tokenizer": facts.tokenizer,
            "corpus": facts.corpus,
            "capture": CaptureConfig(logits=facts.logits),
            "codec": facts.codec,
            "provenance": facts.provenance,
            "tokens_per_shard": self._tokens_per_shard,
            "units": [],
            "complete": False,
            "shards": [],
            "tables": {},
            "totals": NO_TOTALS,
        }
        return validate(Manifest, tree, str(self.files[0]))

    def samples(self) -> Iterator[Found]:
        """One a row."""
        done = 0
        for file in self.files:
            for part in read_parts(file, parquet.SCHEMA.names):
                pairs = parquet.samples(part.rows, self._facts, str(file), part.first_row)
                for i, (tokens, logits) in enumerate(pairs):
                    done += 1
                    yield Found(f"{file}: row {part.first_row + i}", done, tokens, logits)

    def finished(self, manifest: Manifest, longest: int) -> Manifest:
        """Says where the samples came from. Raises UserError when some are missing."""
        source = self._facts.source
        if manifest.totals.samples != source.samples:
            raise UserError(
                f"{self.files[0].parent}: {manifest.totals.samples} samples, {source.samples} were exported; files are "
                "missing or were added"
            )
        return manifest.model_copy(update={"derived": parquet.derivation(self._facts)})
