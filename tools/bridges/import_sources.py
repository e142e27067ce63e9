"""Sources of an import: files of one layout, as samples and a manifest."""

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
from tools.bridges.parquet_files import number_of_rows, open_file, read_blocks


class Found(NamedTuple):
    """A sample and its origin."""

    where: str  # file and row, for error messages
    rows_done: int  # over all files
    tokens: TokenSample
    logits: LogitsSample


class Source(ABC):
    """The files of one layout to import."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self.n_rows = 0  # over all files, for the progress

    @abstractmethod
    def plan(self) -> Manifest:
        """The new cache's manifest before anything is imported."""

    @abstractmethod
    def samples(self) -> Iterator[Found]:
        """Every sample, in order. Raises UserError when a file does not follow the layout."""

    @abstractmethod
    def finished(self, manifest: Manifest, longest: int) -> Manifest:
        """Complete the manifest after all samples are imported; ``longest``: tokens of the longest sequence.

        Sets ``derived``, and all that is known only at the end.
        """


class ParquetSource(Source):
    """The output of ``cache-tools export --to parquet``."""

    def __init__(self, files: list[Path], tokens_per_shard: int) -> None:
        """Raises UserError unless all files come from one export."""
        super().__init__(files)
        self.n_rows = number_of_rows(files)
        self._tokens_per_shard = tokens_per_shard
        facts = [parquet.facts_of(open_file(file).schema_arrow.metadata, str(file)) for file in files]
        self._facts = facts[0]
        for file, others in zip(files, facts, strict=True):
            if others != self._facts:
                raise UserError(f"{file}: exported from a different cache than {files[0]}; import one export at a time")

    def plan(self) -> Manifest:
        """The exported cache's manifest, reduced to its logits. Raises UserError when it is not valid."""
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
        """One sample per row of the files."""
        done = 0
        for file in self.files:
            for block in read_blocks(file, parquet.SCHEMA.names):
                pairs = parquet.samples(block.rows, self._facts, str(file), block.first_row)
                for i, (tokens, logits) in enumerate(pairs):
                    done += 1
                    yield Found(f"{file}: row {block.first_row + i}", done, tokens, logits)

    def finished(self, manifest: Manifest, longest: int) -> Manifest:
        """``manifest`` with the derivation. Raises UserError when samples are missing or were added."""
        source = self._facts.source
        if manifest.totals.samples != source.samples:
            raise UserError(
                f"{self.files[0].parent}: {manifest.totals.samples} samples, but {source.samples} were exported; files "
                "are missing or were added"
            )
        return manifest.model_copy(update={"derived": parquet.derivation(self._facts)})
