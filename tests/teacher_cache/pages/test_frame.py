"""What the frame does with a folder's template, style, scripts and data."""

import json
import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from teacher_cache.pages.frame import inert_json, render_page

HOSTILE = "</script><!--<script>&amp;\u2028\u2029\"'\ud800"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    template = '{% extends "frame.html.jinja" %}{% block main %}<p id="p">{{ said }}</p>{% endblock %}'
    (tmp_path / "page.html.jinja").write_text(template)
    (tmp_path / "page.css").write_text("#p { margin: 0 }")
    (tmp_path / "a.js").write_text('"use strict";\n')
    (tmp_path / "b.js").write_text("1 < 2 && 3;\n")
    return tmp_path


def test_texts_are_escaped_and_code_is_not(folder: Path) -> None:
    page = render_page(folder, ["a.js", "b.js"], {"x": HOSTILE}, HOSTILE, "<b>", said=HOSTILE).decode()
    assert '<script>"use strict";\n1 < 2 && 3;\n</script>' in page
    assert "#p { margin: 0 }</style>" in page
    assert len(re.findall("<script", page)) == len(re.findall("</script", page)) == 2
    (data,) = re.findall(r'id="data">(.*?)</script>', page)
    assert json.loads(data)["x"] == HOSTILE.replace("\ud800", "?")
    assert re.search(r"<title>(.*?)</title>", page)[1].startswith("&lt;/script&gt;&lt;!--")  # type: ignore[index]
    assert '<p id="p">&lt;/script&gt;' in page


def test_a_part_that_is_missing_is_an_error(folder: Path) -> None:
    with pytest.raises(UndefinedError, match="'said' is undefined"):
        render_page(folder, [], None, "t", "f")


def test_json_is_inert_and_the_same_value() -> None:
    text = inert_json({"a": HOSTILE})
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == {"a": HOSTILE}
