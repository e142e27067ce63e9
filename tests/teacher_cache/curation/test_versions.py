"""Versions that judgements depend on."""

from unittest import mock

import pytest

from schemas.errors import UserError
from support.records_to_judge import opened
from teacher_cache.curation.versions import versions_fingerprint


def test_another_version_of_a_library_or_of_the_grammar_has_another_fingerprint() -> None:
    found = versions_fingerprint("numpy")
    assert len(found) == 64
    assert versions_fingerprint("numpy") == found != versions_fingerprint("pyarrow")
    with mock.patch("teacher_cache.curation.versions.version", return_value="0"):
        assert versions_fingerprint("numpy") != found
    with mock.patch("platform.python_version_tuple", return_value=("3", "99", "0")):
        assert versions_fingerprint("numpy") != found


def test_a_library_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"^no-such-library: not installed, .*; install the extra 'curate'"):
        versions_fingerprint("no-such-library")


@pytest.mark.parametrize("step", [{"step": "code"}, {"step": "broken_text"}, {"step": "language", "keep": ["en"]}])
def test_steps_have_the_fingerprint_of_what_they_use(step: dict[str, object]) -> None:
    before = opened(step).fingerprint()
    with mock.patch("teacher_cache.curation.versions.version", return_value="0"):
        assert opened(step).fingerprint() != before
