"""Compiled functions need no folder to be kept in; what they raise names what was seen and what was wanted."""

import pytest

from schemas.errors import CorruptCacheError
from teacher_cache.codec.compiled import compiled, refused_as_corrupt

SOURCE = """
def checked(seen, wanted):
    if seen != wanted:
        raise ValueError("bytes of something", seen, wanted)
    return 2 * seen
"""


def test_a_function_that_cannot_be_kept_on_disk_is_compiled() -> None:
    names: dict = {}
    exec(SOURCE, names)  # it has no file, and so no place beside it
    checked = compiled(names["checked"])
    assert checked(4, 4) == 8
    with pytest.raises(CorruptCacheError, match=r"^bytes of something: 4, wanted 5$"), refused_as_corrupt():
        checked(4, 5)
    assert checked.signatures, "compiled, not merely called"
