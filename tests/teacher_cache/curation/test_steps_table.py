import sys

import pytest

from schemas.errors import UserError
from support.records_to_judge import opened


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"step": "deduplicate"}, "rensa"),
        ({"step": "language", "keep": ["en"]}, "py3langid"),
        ({"step": "broken_text"}, "ftfy"),
        ({"step": "code"}, "markdown_it"),
    ],
)
def test_a_missing_package_is_named_with_the_extra(
    settings: dict[str, object], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(settings)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError, match=rf"steps\.0 \({settings['step']}\): the package {package} is not installed; .*curate"
    ):
        opened(settings)
