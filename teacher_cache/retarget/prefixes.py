"""Which token of another vocabulary each ending of a token begins with.

φ(b) is the longest token of the student whose bytes are a prefix of the bytes b (arXiv:2607.22334). It is tabulated for
every ending of every teacher token, because a student token may begin inside one.

Shape letters: V tokens of a vocabulary, B bytes of all its tokens, one after the other.
"""

import numpy as np

from teacher_cache.codec.compiled import compiled
from teacher_cache.token_table import TokenTable


def longest_prefixes(teacher: TokenTable, student: TokenTable) -> np.ndarray:
    """φ of every ending of every teacher token: student ids, int32 [B of the teacher]; -1 where no token is a prefix.

    Entry ``teacher.begin_V[v] + o`` is that of token v without its first o bytes. Of student tokens with the same bytes
    the one with the lowest id counts.
    """
    tokens = [student.token(i) for i in range(len(student.length_V))]
    order = np.array(sorted((i for i in range(len(tokens)) if tokens[i]), key=lambda i: (tokens[i], i)), np.int64)
    return _longest_prefixes(teacher.bytes_B, teacher.begin_V, teacher.length_V, *student, order)


def of_whole_tokens(tokens: TokenTable, prefixes_B: np.ndarray) -> np.ndarray:
    """``longest_prefixes`` of whole tokens, int32 [V]; -1: none."""
    found_V = np.full(len(tokens.length_V), -1, np.int32)
    spelled_V = tokens.length_V > 0
    found_V[spelled_V] = prefixes_B[tokens.begin_V[spelled_V]]
    return found_V


@compiled
def _longest_prefixes(
    teacher_B: np.ndarray,
    teacher_begin_V: np.ndarray,
    teacher_length_V: np.ndarray,
    student_B: np.ndarray,
    begin_V: np.ndarray,
    length_V: np.ndarray,
    order: np.ndarray,
) -> np.ndarray:
    """``order``: student ids sorted by their bytes; a prefix of the bytes narrows it to a range."""
    found = np.full(len(teacher_B), -1, np.int32)
    for v in range(len(teacher_begin_V)):
        end = teacher_begin_V[v] + teacher_length_V[v]
        for first in range(teacher_begin_V[v], end):
            low, high = 0, len(order)
            for at in range(first, end):
                depth, byte = at - first, np.int64(teacher_B[at])
                low = _first_at_least(student_B, begin_V, length_V, order, low, high, depth, byte)
                high = _first_at_least(student_B, begin_V, length_V, order, low, high, depth, byte + 1)
                if low == high:
                    break
                if length_V[order[low]] == depth + 1:  # the prefix itself sorts before what it is a prefix of
                    found[first] = order[low]
    return found


@compiled
def _first_at_least(
    bytes_B: np.ndarray,
    begin_V: np.ndarray,
    length_V: np.ndarray,
    order: np.ndarray,
    low: int,
    high: int,
    depth: int,
    byte: int | np.int64,
) -> int:
    """The first place in ``order[low:high]`` whose token has at least ``byte`` at ``depth``; -1 stands for no byte."""
    while low < high:
        middle = (low + high) // 2
        token = order[middle]
        here = np.int64(bytes_B[begin_V[token] + depth]) if length_V[token] > depth else np.int64(-1)
        if here < byte:
            low = middle + 1
        else:
            high = middle
    return low
