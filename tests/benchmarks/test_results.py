import json
import math

import pytest

from benchmarks.support.results import (
    BAR_MISSED,
    Row,
    as_cells,
    at_least,
    at_most,
    exit_status,
    format_value,
    machine,
    read_results,
    write_results,
)


@pytest.mark.parametrize(("value", "holds"), [(127.9, True), (128, True), (128.1, False), (math.nan, False)])
def test_at_most(value: float, holds: bool) -> None:
    assert at_most("size", value, "B", 128) == Row("size", value, "B", "≤ 128", holds) or math.isnan(value)
    assert at_most("size", value, "B", 128).holds is holds


@pytest.mark.parametrize(("value", "holds"), [(0.64, False), (0.65, True), (2, True), (math.nan, False)])
def test_at_least(value: float, holds: bool) -> None:
    assert at_least("ratio", value, "", 0.65).holds is holds
    assert at_least("ratio", value, "", 0.65).bar == "≥ 0.65"


def test_exit_status_is_about_bars_only() -> None:
    fact, kept, missed = Row("a", 1), at_most("b", 1, "", 2), at_most("c", 3, "", 2)
    assert exit_status([fact, kept]) == 0
    assert exit_status([fact, kept, missed]) == BAR_MISSED


def test_what_is_written_can_be_read_back(tmp_path, capsys) -> None:
    rows = [Row("speed", 1234.5, "tok/s"), at_most("size", 200, "B/token", 128)]
    path = tmp_path / "results" / "x.json"
    write_results("x", "A title", rows, {"seconds": [1.0]}, path)
    assert read_results(path) == ("A title", rows)
    document = json.loads(path.read_text())
    assert document["raw"] == {"seconds": [1.0]}
    assert document["rows"][1] == {"what": "size", "value": 200, "unit": "B/token", "bar": "≤ 128", "holds": False}
    assert document["versions"]["python"]
    shown = capsys.readouterr().out
    assert "1,234" in shown
    assert "NO" in shown


def test_nan_is_not_written(tmp_path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_results("x", "t", [Row("a", math.nan)], {}, tmp_path / "x.json")


def test_machine_names_no_host_and_no_path() -> None:
    facts = machine()
    assert set(facts) == {"cpu", "instructions", "cores", "memory_gib", "gpus"}
    assert facts["cores"] >= 1
    assert "/" not in json.dumps(facts["instructions"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (65_536, "65,536"),
        (2.0, "2"),
        (0, "0"),
        (1234.56, "1,235"),
        (112.345, "112.3"),
        (0.65, "0.65"),
        (0.03125, "0.0312"),
        (2.1e-6, "2.1e-06"),
        ("text", "text"),
    ],
)
def test_format_value(value: float | str, text: str) -> None:
    assert format_value(value) == text


def test_a_row_without_a_bar_has_empty_cells() -> None:
    assert as_cells(Row("a", 1, "s")) == ["a", "1", "s", "", ""]
