"""From files of text and chats to sequences of tokens: read, clean, render, tokenize, cut, count."""

from teacher_cache.corpus.fingerprint import corpus_fingerprint
from teacher_cache.corpus.sequences import Corpus

__all__ = ["Corpus", "corpus_fingerprint"]
