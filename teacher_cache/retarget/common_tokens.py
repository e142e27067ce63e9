"""Classes of a student's tokens by the token that two vocabularies have in common.

Of a teacher token and a student token that begin at the same byte of a text, the bytes of one are a prefix of the
other's. Take the longest prefix of a token in the other vocabulary, of that one in the first, and so on, until both
have the same bytes: the *common token*. Measured at 97 to 98 % of the bytes where both begin a token (SmolLM2 and
Qwen3.6), teacher token and student token have the same one. So tokens with one common token are a class whose
probability can be compared, as a sum on either side, wherever its tokens end.

Shape letters: U teacher tokens, V student tokens.
"""

import numpy as np

from teacher_cache.retarget.prefixes import longest_prefixes, of_whole_tokens
from teacher_cache.token_table import TokenTable


def common_tokens(teacher: TokenTable, student: TokenTable, to_student_U: np.ndarray) -> np.ndarray:
    """The common token of each student token, as a student token, int32 [V]; the token itself where there is none.

    to_student_U: ``of_whole_tokens`` of the teacher's tokens, integer; -1: none.
    """
    to_teacher_V = of_whole_tokens(student, longest_prefixes(student, teacher))
    found_V = np.arange(len(to_teacher_V), dtype=np.int32)
    open_v, at_v = found_V, found_V  # tokens whose common one is not found yet, and how far each has come
    while len(open_v):
        teacher_v = to_teacher_V[at_v]
        back_v = np.where(teacher_v >= 0, to_student_U[teacher_v], -1)
        is_equal_v = (back_v >= 0) & (student.length_V[back_v] == teacher.length_V[teacher_v])
        found_V[open_v[is_equal_v]] = back_v[is_equal_v]
        goes_on_v = (back_v >= 0) & ~is_equal_v  # to a shorter token
        open_v, at_v = open_v[goes_on_v], back_v[goes_on_v]
    return found_V
