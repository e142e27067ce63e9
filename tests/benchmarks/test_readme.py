from pathlib import Path

import pytest

from benchmarks.readme import DOCUMENTS, fill, find_row, main
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


def test_the_readmes_figures_and_output_follow_the_results() -> None:
    text = "<!-- figures -->\nstale\n<!-- /figures -->\n<!-- demo -->\nstale\n<!-- /demo -->\n"
    filled = fill(text, RESULTS)
    assert "stale" not in filled
    assert sum(line.startswith("| ") for line in filled.splitlines()) == 1 + 6
    assert "$ make demo\n…\n   before training: KL " in filled
    assert "   seed 0, distilled: KL " in filled
    assert fill(filled, RESULTS) == filled


def test_a_figure_whose_row_is_gone_is_named(tmp_path: Path) -> None:
    write_results("x", "About x", [Row("… speed", 1.0)], {}, tmp_path / "x.json")
    with pytest.raises(LookupError, match=r"x\.json: no row matches 'speed'"):
        find_row(tmp_path / "x.json", "speed")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_documents_are_up_to_date(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert "<!-- /" in text
    assert fill(text, RESULTS) == text


def test_check_finds_a_stale_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / "page.md"
    stale.write_text("<!-- results:size -->\nstale\n<!-- /results -->\n")
    monkeypatch.setattr("benchmarks.readme.DOCUMENTS", (stale,))
    assert main(["--check"]) == 1
    assert "stale" in stale.read_text()
    assert main([]) == 0
    assert "stale" not in stale.read_text()
    assert main(["--check"]) == 0
