"""Near duplicates: MinHash signatures, bands of them sorted, and each record held against those that stay.

Two records are candidates if a band of 8 of their 112 minimal hashes is equal (Broder 1997; bands: Leskovec, Rajaraman,
Ullman, "Mining of Massive Datasets", 3.4): with probability 1 - (1 - J⁸)¹⁴ for the Jaccard similarity J of their
n-grams, one half at 0.69. In the order of the input, a record leaves if the estimated similarity to a candidate that
stays, or to the one for which a candidate left, is high enough. So nothing leaves because of a chain of records that
differ more and more: each that leaves is near one that stays.

Of each band, hashes of all records are sorted; a record's candidates are the first and the previous one with its hash.
So memory is some 40 bytes per record, and 224 bytes on disk beside the signatures.
"""

import mmap
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from schemas.curate_steps import DeduplicateStep
from teacher_cache.codec.compiled import compiled
from teacher_cache.curation.curation_step import Decision, GlobalStep, StepPlace, Table
from teacher_cache.curation.record import BETWEEN, Record
from teacher_cache.curation.shingles import hashed_shingles
from teacher_cache.curation.versions import versions_fingerprint

BANDS, ROWS = 14, 8
HASHES = BANDS * ROWS
TEXT_HASH = 2  # columns of a sketch before its signature: the hash of the text's words, in two parts
PIECE = 1 << 16  # records at a time
STAYS, SAME, NEAR = 0, 1, 2


class Deduplicate(GlobalStep):
    """Of records that are near duplicates, the first stays."""

    reasons = ("duplicate", "near_duplicate")

    def __init__(self, settings: DeduplicateStep, place: StepPlace) -> None:
        self._settings, self._scratch = settings, place.scratch

    def fingerprint(self) -> str:
        """The version of the hash functions."""
        return versions_fingerprint("rensa")

    def sketch(self, records: Sequence[Record]) -> np.ndarray:
        """Hash of the words and signature of each record: uint32 [N, 2 + 112]."""
        return sketches([self._text(record) for record in records], self._settings.seed)

    def _text(self, record: Record) -> str:
        if self._settings.of == "all":
            return record.prompt + BETWEEN + record.reply
        return record.prompt if self._settings.of == "prompt" else record.reply

    def decide(self, sketch_N: np.ndarray, table: Table) -> Decision:
        """Find the near duplicates among all."""
        code_N, _ = near_duplicates(sketch_N, self._settings.min_jaccard, self._scratch)
        return Decision(code_N, {"bands": BANDS, "rows": ROWS})


def sketches(texts: Sequence[str], seed: int) -> np.ndarray:
    """What is compared of each text: uint32 [N, 2 + 112]."""
    from rensa import RMinHash

    hashes_H, offsets, text_N = hashed_shingles(texts)
    found = RMinHash.digest_matrix_from_flat_token_hashes(hashes_H, offsets.astype(np.uint64), HASHES, seed)
    sketch_N = np.empty((len(texts), TEXT_HASH + HASHES), np.uint32)
    sketch_N[:, :TEXT_HASH] = text_N.view(np.uint32).reshape(-1, TEXT_HASH)
    sketch_N[:, TEXT_HASH:] = found.to_rows()
    return sketch_N


def near_duplicates(
    sketch_N: np.ndarray, min_jaccard: float, scratch: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which records leave, in the order of the sketches, and near which one that stays.

    Returns uint8 [N], of STAYS, SAME (equal words) and NEAR, and int64 [N], itself for those that stay. scratch: folder
    for temporary files.
    """
    n = len(sketch_N)
    code_N, leader_N = np.zeros(n, np.uint8), np.arange(n)
    least = int(np.ceil(min_jaccard * HASHES - 1e-9))  # equal hashes
    with tempfile.TemporaryFile(dir=scratch) as file, tempfile.TemporaryFile(dir=scratch) as other:
        band_BN = np.memmap(file, np.uint64, "w+", shape=(BANDS, n))
        for start, part in pieces(sketch_N):
            band_BN[:, start : start + len(part)] = band_hashes(part[:, TEXT_HASH:])
            _forget(band_BN)
        candidate_CN = np.memmap(other, np.int32, "w+", shape=(2 * BANDS, n))
        for band in range(BANDS):
            candidate_CN[2 * band : 2 * band + 2] = first_and_previous(np.array(band_BN[band]))
            _forget(band_BN)
            _forget(candidate_CN)
        for start in range(0, n, PIECE):
            part = np.array(candidate_CN[:, start : start + PIECE])
            _forget(candidate_CN)
            _lead(sketch_N.view(np.ndarray), part, start, least, leader_N, code_N)
            _forget(sketch_N)
    return code_N, leader_N


def pieces(sketch_N: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(place of the first, copy) of consecutive sketches."""
    for start in range(0, len(sketch_N), PIECE):
        yield start, np.array(sketch_N[start : start + PIECE])
        _forget(sketch_N)


def _forget(array: np.ndarray) -> None:
    """Unmap pages of a memory-mapped array that were read: they stay in the system's cache, not in this process."""
    mapped = getattr(array, "_mmap", None)
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def band_hashes(signature_N: np.ndarray) -> np.ndarray:
    """A hash of each band of each signature: uint64 [14, N]."""
    found = np.zeros((BANDS, len(signature_N)), np.uint64)
    banded = signature_N.reshape(-1, BANDS, ROWS).astype(np.uint64)
    for row in range(ROWS):
        found = (found ^ banded[:, :, row].T) * np.uint64(0x9E3779B97F4A7C15)
        found ^= found >> np.uint64(29)
    return found


def first_and_previous(hash_N: np.ndarray) -> np.ndarray:
    """Of each record the first and the previous one with the same hash, itself if there is none: int32 [2, N]."""
    order_N = np.argsort(hash_N, kind="stable").astype(np.int32)
    begins_N = np.ones(len(hash_N), bool)
    np.not_equal(hash_N[order_N[1:]], hash_N[order_N[:-1]], out=begins_N[1:])
    found = np.empty((2, len(order_N)), np.int32)
    found[0, order_N] = order_N[np.maximum.accumulate(np.where(begins_N, np.arange(len(order_N)), 0))]
    found[1, order_N] = np.where(begins_N, order_N, np.roll(order_N, 1))
    return found


@compiled
def _lead(
    sketch_N: np.ndarray, candidate_CM: np.ndarray, start: int, least: int, leader_N: np.ndarray, code_N: np.ndarray
) -> None:
    """Decide over the records from ``start`` on, whose candidates are ``candidate_CM``."""
    for place in range(candidate_CM.shape[1]):
        at = start + place
        checked = -1
        for row in range(candidate_CM.shape[0]):
            candidate = candidate_CM[row, place]
            if candidate == at:
                continue
            leader = leader_N[candidate]
            if leader == checked:
                continue
            checked = leader
            equal = 0
            for column in range(2, sketch_N.shape[1]):
                equal += sketch_N[leader, column] == sketch_N[at, column]
            same = sketch_N[leader, 0] == sketch_N[at, 0] and sketch_N[leader, 1] == sketch_N[at, 1]
            if equal >= least and (same or not code_N[at]):
                leader_N[at] = leader
                code_N[at] = SAME if same else NEAR
            if same:
                break
