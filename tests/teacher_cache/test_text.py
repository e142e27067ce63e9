"""Untrusted text cannot become markup."""

import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from teacher_cache.text import code_block, code_span, front_matter, in_header, one_line, reason_of

MARKDOWN = MarkdownIt("commonmark").enable("table")
hostile = st.text(st.sampled_from("`|<>[]()!#*_-\n\r\t\x1b\u2028\u202e\\ab:/.&~ ")) | st.text()


@given(hostile, st.integers(1, 30))
def test_a_line_is_one_line_of_printable_characters(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert line.isprintable()
    assert len(line) <= limit
    assert line == line.strip()


def test_truncation_is_marked() -> None:
    assert one_line("abcdef", 6) == "abcdef"
    assert one_line("abcdefg", 6) == "abcde…"
    assert one_line(" " * 1_000_000 + "a", 6).endswith("…")
    assert one_line("a\x1b[2J\u202eb\nc") == r"a\x1b[2J\u202eb c"


@given(hostile)
@example("`")
@example("``a`")
@example("[x](http://e) <img src=x>")
def test_a_span_is_code_and_nothing_else(text: str) -> None:
    (_, inline, _) = MARKDOWN.parse(f"- {code_span(text)}")[2:5]
    assert inline.children is not None
    assert [child.type for child in inline.children] == ["code_inline"]
    assert inline.children[0].content.strip() == one_line(text)


@given(hostile)
@example("```\n# heading\n````\n<b>")
def test_a_block_is_code_and_nothing_else(text: str) -> None:
    (token,) = MARKDOWN.parse("\n".join(code_block(text)))
    assert token.type == "fence"


@given(st.dictionaries(st.sampled_from("abc"), hostile | st.lists(hostile) | st.integers()))
def test_front_matter_is_yaml_and_harmless_markdown(values: dict[str, object]) -> None:
    lines = front_matter(values)
    assert (lines[0], lines[-1]) == ("---", "---")
    assert "---" not in lines[1:-1]
    assert yaml.safe_load("\n".join(lines[1:-1])).keys() == values.keys()
    inline = [child.type for token in MARKDOWN.parse("\n".join(lines)) for child in token.children or []]
    assert not {"html_inline", "link_open", "image"} & {*inline}


def test_the_hubs_complaint_about_the_form_of_a_path_is_dropped() -> None:
    assert reason_of(OSError("Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/a/b/c'.")) == ""
    assert reason_of(OSError("no file named config.json\nsecond line")) == ": no file named config.json"


def test_lines_are_added_to_the_header_alone() -> None:
    assert in_header("---\na: 1\n---\ntext\n---\n", "b: 2", "c: 3") == "---\nb: 2\nc: 3\na: 1\n---\ntext\n---\n"
    assert in_header("text\n---\n", "b: 2") == "---\nb: 2\n---\ntext\n---\n"
