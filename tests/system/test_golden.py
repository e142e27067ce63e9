"""The golden cache of each format version is read, and gives the same arrays, for ever."""

import json

from support.golden import EXPECTED, GOLDEN, array_digests
from tools.checking.verify import verify


def test_every_array_is_what_it_was_when_the_format_was_frozen() -> None:
    assert array_digests(GOLDEN) == json.loads(EXPECTED.read_text())


def test_it_is_whole_and_small() -> None:
    assert verify(str(GOLDEN)).problems == []
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 200_000
