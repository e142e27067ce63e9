"""Lengths of what is learned."""

import pytest

from schemas.errors import UserError
from support.records_to_judge import judged, opened, text_record


def test_both_limits_stay() -> None:
    step = opened({"step": "length", "min_tokens": 128, "max_tokens": 512, "layers": ["base"]})
    records = [text_record("x", n_tokens=n) for n in (0, 127, 128, 512, 513)]
    assert judged(step, *records) == ["too_short", "too_short", "", "", "too_long"]
    assert judged(step, text_record("x", "code", n_tokens=1), records[0]) == ["", "too_short"]


def test_a_layer_that_no_source_has_is_refused() -> None:
    with pytest.raises(UserError, match=r"steps\.0\.layers: no source has the layer bass; there are base, code"):
        opened({"step": "length", "layers": ["bass"]})
