"""Functions compile without a writable cache folder; their errors name the value seen and the value wanted."""

import pytest

from schemas.errors import CorruptCacheError
from teacher_cache.codec.compiled import compiled, refused_as_corrupt

SOURCE = """
def checked(seen, wanted):
    if seen != wanted:
        raise ValueError("bytes of something", seen, wanted)
    return 2 * seen
"""


def test_functions_compile_without_a_cache_folder() -> None:
    names: dict = {}
    exec(SOURCE, names)  # it has no file, and so no place beside it
    checked = compiled(names["checked"])
    assert checked(4, 4) == 8
    with pytest.raises(CorruptCacheError, match=r"^bytes of something: 4, wanted 5$"), refused_as_corrupt():
        checked(4, 5)
    assert checked.signatures, "compiled, not merely called"
