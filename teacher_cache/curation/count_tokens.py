"""Count the tokens of records that are learned."""

from collections.abc import Sequence
from dataclasses import replace

from teacher_cache.corpus.documents import Document
from teacher_cache.curation.record import Record


class TokenCounter:
    """Counts what a record adds to a mix: the tokens of its reply, and one for the end of each learned message.

    The blank line between two learned messages stands for the end of the first. Generated replies have their ids.
    """

    def __init__(self, tokenizer: str) -> None:
        """tokenizer: the content of its ``tokenizer.json``; model libraries are not loaded."""
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def counted(self, records: Sequence[Record]) -> list[Record]:
        """The records with ``n_tokens``."""
        texts = [record.reply for record in records if isinstance(record.content, Document)]
        found = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)) if texts else iter(())
        return [
            replace(record, n_tokens=len(next(found)) + (record.messages is not None))
            if isinstance(record.content, Document)
            else record
            for record in records
        ]
