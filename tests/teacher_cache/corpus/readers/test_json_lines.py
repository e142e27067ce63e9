"""JSON lines parse to the same values as with ``json``, whichever parser accepts them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher_cache.corpus.readers.json_lines import _parsed

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans())
def test_values_are_those_of_json(value: object, ascii_only: bool) -> None:
    line = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        wanted = json.loads(str(line, "utf-8"))
    except UnicodeDecodeError:  # a lone surrogate that is not escaped
        with pytest.raises(UnicodeDecodeError):
            _parsed(line)
        return
    assert repr(_parsed(line)) == repr(wanted)


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": "\\ud800"}',
        b'{"a": NaN, "b": -Infinity, "c": 1e400, "d": -0, "e": 123456789012345678901234567890}',
        b'{"a": 1, "a": 2}',
        b'{"a": ' + b"[" * 400 + b"]" * 400 + b"}",
        b'{"a": 2.2250738585072011e-308, "b": 9007199254740993.0, "c": 1E5}\r\n',
    ],
)
def test_non_standard_values_of_the_json_module_are_accepted(line: bytes) -> None:
    assert repr(_parsed(line)) == repr(json.loads(line))


@pytest.mark.parametrize("line", [b"", b"\n", b'{"a": 1}{', b'{"a": "\x01"}', b'{"a": "\xff"}', b'{"a": 01}', b"nul"])
def test_invalid_json_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        _parsed(line)
