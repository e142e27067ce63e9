"""Contents of the page, without a browser."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from schemas.errors import UserError
from support.run_outputs import metric_lines, write_run
from trainer.run_report.run_page import MOST_BYTES, report_runs
from trainer.train_student_cli import main

SAMPLES = [
    {"step": step, "prompt": prompt, "text": f"{prompt} after {step}"} for step in (0, 20, 40) for prompt in ("p", "q")
]


def text_of(page: Path) -> str:
    """The page's text, without style, script and data."""
    body = re.sub(r"<(script|style)\b.*?</\1>", "", page.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def data_of(page: Path) -> dict[str, Any]:
    (found,) = re.findall(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)
    return json.loads(found)


def test_one_run(tmp_path: Path) -> None:
    lines = metric_lines(40)
    folder = write_run(tmp_path / "a", lines, ended="completed", samples=SAMPLES, lr=1e-3)
    said = report_runs([str(folder)], tmp_path / "r.html")
    text, last = text_of(tmp_path / "r.html"), [line for line in lines if "loss" in line][-1]
    assert "completed at step 40 of 40" in text
    assert "Every value that was logged is drawn." in text
    for title in ("Term tla", "Term lhsm", "Weight of tla", "KL to the teacher", "Learning rate", "Throughput",
                  "Share of it that waits for data", "Peak memory, process"):  # fmt: skip
        assert title in text
    for row in ("tokens per second, median 8,192", "data wait share, median 2 %", "peak memory, bytes 3.00 GiB",
                "parameters 1,234,567", f"loss term tla {last['tla']:.4g}", "optimizer.lr 0.001"):  # fmt: skip
        assert row in text
    assert "before training p after 0 step 40 p after 40" in text
    assert "after 20" not in text
    assert said["runs"][str(folder)]["state"] == "completed at step 40 of 40"
    assert said["runs"][str(folder)]["loss"] == last["loss"]
    assert said["bytes"] == (tmp_path / "r.html").stat().st_size


def test_the_data_are_the_values(tmp_path: Path) -> None:
    lines = metric_lines(40)
    report_runs([str(write_run(tmp_path / "a", lines))], tmp_path / "r.html")
    data = data_of(tmp_path / "r.html")
    place, means = data["plots"][0]["runs"]["1"]
    assert data["steps"][place] == list(range(1, 41))
    assert means == [pytest.approx(line["loss"], rel=1e-3) for line in lines if "loss" in line]


def test_several_runs(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", metric_lines(40), ended="completed", samples=SAMPLES)
    b = write_run(tmp_path / "b", metric_lines(20, level=1.0), lr=1e-3, output="runs/b", samples=SAMPLES[:2])
    said = report_runs([str(a), str(b), str(a)], tmp_path / "r.html")
    text = text_of(tmp_path / "r.html")
    assert "2 training runs" in text
    assert "going on or killed: step 20 of 40" in text
    assert said["differences"] == {"optimizer.lr": ["0.0003", "0.001"], "output": ['"runs/a"', '"runs/b"']}
    assert "optimizer.lr 0.0003 0.001" in text
    curves = re.findall(r'class="curve run-2" d="M(?!1 4)[\d.]+ [\d.]+L', (tmp_path / "r.html").read_text("utf-8"))
    data = data_of(tmp_path / "r.html")
    assert len(curves) == len(data["plots"])
    assert (data["names"], data["ends"]) == (["a", "b"], [40, 20])


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / name / "student", metric_lines(3))) for name in ("x", "y")]
    report_runs(runs, tmp_path / "r.html")
    assert data_of(tmp_path / "r.html")["names"] == ["x/student", "y/student"]


def test_the_page_is_the_same_every_time(tmp_path: Path) -> None:
    folder = str(write_run(tmp_path / "a", metric_lines(40), samples=SAMPLES))
    for name in ("1.html", "2.html"):
        report_runs([folder], tmp_path / name)
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10⁵ steps with a spike, cut off in the middle of a line."""
    folder = tmp_path_factory.mktemp("long")
    return write_run(folder / "a", metric_lines(100_000, spike_at=77_777), tail='{"step": 100001, "lo', planned=200_000)


def test_a_hundred_thousand_steps(tmp_path: Path, long_run: Path) -> None:
    said = report_runs([str(long_run)], tmp_path / "r.html")
    assert said["bytes"] <= MOST_BYTES == 2_000_000
    text = text_of(tmp_path / "r.html")
    assert "the band behind reaches from the lowest to the highest value of each stretch, so that no spike" in text
    assert "1 line of metrics.jsonl could not be read" in text
    assert "going on or killed: step 100,000 of 200,000" in text
    _, means, lows, highs = data_of(tmp_path / "r.html")["plots"][0]["runs"]["1"]
    assert max(highs) == 99.0
    assert max(means) < 5
    assert len(lows) == 400


def test_eight_runs_with_many_metrics_and_texts_stay_small(tmp_path: Path) -> None:
    long = "<&>" * 1300
    lines = [line | {f"more_{i}": i * line["step"] for i in range(70)} for line in metric_lines(400)]
    samples = [{"step": step, "prompt": f"{i}{long}", "text": long} for step in (0, 9) for i in range(32)]
    runs = [str(write_run(tmp_path / f"{i}", lines[: -1 - i], samples=samples)) for i in range(8)]
    said = report_runs(runs, tmp_path / "r.html")
    assert said["bytes"] <= MOST_BYTES
    assert "more metrics have no plot" in text_of(tmp_path / "r.html")
    assert re.search(r"\d+ more prompts are in samples", text_of(tmp_path / "r.html"))


def test_a_run_of_an_older_version(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 3, "loss": 2.5}\n')
    report_runs([str(folder)], tmp_path / "r.html")
    text = text_of(tmp_path / "r.html")
    assert "going on or killed: step 3" in text
    assert "a: no readable run.json, so its settings are unknown." in text


def test_a_run_that_was_resumed_after_its_summary_goes_on(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", metric_lines(10), ended="interrupted")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "loss": 1}\n')
    report_runs([str(folder)], tmp_path / "r.html")
    assert "going on or killed: step 11 of 40" in text_of(tmp_path / "r.html")


def test_the_command(tmp_path: Path) -> None:
    folder, out = write_run(tmp_path / "a", metric_lines(5)), tmp_path / "r.html"
    result = CliRunner().invoke(main, ["report", str(folder), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["bytes"] == out.stat().st_size
    table = CliRunner().invoke(main, ["report", str(folder), "--out", str(out)])
    assert str(out) in table.stdout


def test_problems_leave_no_file(tmp_path: Path) -> None:
    out, folder = tmp_path / "r.html", str(write_run(tmp_path / "a", metric_lines(5)))
    with pytest.raises(UserError, match=r"no: has no metrics\.jsonl"):
        report_runs([folder, str(tmp_path / "no")], out)
    with pytest.raises(UserError, match="9 runs: a page has room for 8"):
        report_runs([folder] * 9, out)
    with pytest.raises(UserError, match="cannot be written: No such file or directory"):
        report_runs([folder], tmp_path / "nowhere" / "r.html")
    assert not out.exists()
