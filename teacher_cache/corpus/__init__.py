"""Turn text and chat files into token sequences: read, clean, render, tokenize, split, count."""

from teacher_cache.corpus.fingerprint import corpus_fingerprint
from teacher_cache.corpus.sequences import Corpus

__all__ = ["Corpus", "corpus_fingerprint"]
