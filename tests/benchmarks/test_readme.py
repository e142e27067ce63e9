import pytest

from benchmarks.readme import DOCUMENTS, fill
from benchmarks.support.results import RESULTS, Row, at_least, write_results

TEXT = "before\n<!-- results:x -->\nstale\n<!-- /results -->\nbetween\n<!-- results:y -->\n<!-- /results -->\nafter\n"


def test_blocks_are_filled_and_the_rest_is_kept(tmp_path) -> None:
    write_results("x", "About x", [at_least("ratio | of", 0.7, "×", 0.65)], {}, tmp_path / "x.json")
    write_results("y", "About y", [Row("speed", 1234.0, "tok/s")], {}, tmp_path / "y.json")
    filled = fill(TEXT, tmp_path)
    assert filled.startswith("before\n<!-- results:x -->\n**About x**\n")
    assert "| ratio \\| of | 0.7 | × | ≥ 0.65 | yes |" in filled
    assert "| speed | 1,234 | tok/s |  |  |" in filled
    assert "stale" not in filled
    assert filled.endswith("<!-- /results -->\nafter\n")
    assert "\nbetween\n" in filled
    assert fill(filled, tmp_path) == filled


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_documents_are_up_to_date(document) -> None:
    text = document.read_text(encoding="utf-8")
    assert "<!-- results:" in text
    assert fill(text, RESULTS) == text
