import json
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import UserError
from support.run_outputs import metric_lines, write_run
from trainer.run_report.run_reading import MOST_NAMES, read_run, read_series, tokens_per_second


def test_all_of_a_run_is_read(tmp_path: Path) -> None:
    samples = [{"step": 0, "prompt": "a", "text": "b"}, {"step": 3, "prompt": 1, "text": "b"}, {"step": "3"}]
    lines = metric_lines(20)
    run = read_run(str(write_run(tmp_path / "a", lines, ended="completed", samples=samples)))
    assert run.series["loss"].steps.tolist() == list(range(1, 21))
    assert run.series["loss"].values.tolist() == [line["loss"] for line in lines if "loss" in line]
    assert run.series["eval_kl"].steps.tolist() == [10, 20]
    assert (run.last_step, run.last("eval_kl"), run.last("no")) == (20, 1 / 20, None)
    assert run.summary["ended"] == "completed"
    assert run.samples == samples[:1]
    assert run.record is not None
    assert run.record.config["optimizer"]["lr"] == 3e-4


def test_of_overlapping_lines_the_later_win() -> None:
    lines = [
        *({"step": step, "loss": step} for step in (1, 2, 3, 4, 5)),
        {"step": 5, "eval_kl": 50.0},
        {"step": 3, "loss": 30.0},
        {"step": 4, "loss": 40.0},
        {"step": 4, "eval_kl": 4.0},
        {"step": 4, "eval_kl": 4.5},
    ]
    series = read_series(iter(lines))
    assert (series["loss"].steps.tolist(), series["loss"].values.tolist()) == ([1, 2, 3, 4], [1, 2, 30, 40])
    assert (series["eval_kl"].steps.tolist(), series["eval_kl"].values.tolist()) == ([4], [4.5])


def test_lines_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", metric_lines(3))
    good = (folder / "metrics.jsonl").read_bytes()
    cut = b'[1]\n{"step": 2, "\xff": \n' + b"[" * 5000 + b'\n\n{"step": 4, "lo'
    (folder / "metrics.jsonl").write_bytes(good + cut)
    (folder / "run.json").write_text("{")
    (folder / "summary.json").write_text('{"ended"')
    run = read_run(str(folder))
    assert run.unreadable == 4
    assert run.last_step == 3
    assert (run.record, run.summary) == (None, {})


def test_hostile_values_are_left_out() -> None:
    odd = (
        '{"step": 1, "a": NaN, "b": Infinity, "c": 1e999, "d": true, "e": "1", "f": null, "g": [1], "h": 1' + "0" * 400
    )
    lines = [json.loads(odd + ', "loss": 2}')]
    lines += [{"step": step, "loss": 1} for step in (-1, 2**60, "1", True, None, 1.5)]
    lines += [{"step": 2, **{f"m{i}": 1 for i in range(1000)}, "x" * 1000: 1}]
    series = read_series(iter(lines))
    assert series["loss"].steps.tolist() == [1]
    assert not {*"abcdefgh"} & {*series}
    assert len(series) == MOST_NAMES
    assert max(map(len, series)) < 200


@pytest.mark.parametrize("content", [None, "", "\n\n", "{}\n", '{"step": 1, "note": "x"}\n'])
def test_no_metrics(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl.*: ?name the output|metrics\.jsonl.*; name the output"):
        read_run(str(tmp_path))


def test_from_a_store(s3_url: str, tmp_path: Path) -> None:
    from trainer.run.run_store import RunStore

    folder = write_run(tmp_path / "a", metric_lines(12), ended="interrupted")
    RunStore(s3_url).send(folder, [path.name for path in folder.iterdir()])
    assert read_run(s3_url).last_step == 12
    assert read_run(s3_url).summary == {"ended": "interrupted", "steps": 12}


def test_speed(tmp_path: Path) -> None:
    lines = [
        {"step": 2, "step_seconds": 0.5, "tokens": 100},
        {"step": 4, "step_seconds": 0.25, "tokens": 300},
        {"step": 5, "step_seconds": 0.0, "tokens": 400},
    ]
    run = read_run(str(write_run(tmp_path / "a", lines)))
    speed = tokens_per_second(run)
    assert speed is not None
    assert (speed.steps.tolist(), speed.values.tolist()) == ([2, 4], [100, 400])
    del run.series["tokens"]
    assert tokens_per_second(run) is None
    assert np.isfinite(run.series["step_seconds"].values).all()
