import json
from pathlib import Path

from transformers import TrainerControl, TrainerState, TrainingArguments

from trainer.run.metrics import JsonlCallback, cut_metrics


def test_lines_after_the_step_and_torn_lines_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": step / 3}) for step in (1, 2, 2, 3, 4)]
    path.write_text("\n".join(lines) + '\n{"step": 2, "lo')
    cut_metrics(path, last_step=2)
    assert path.read_text() == "\n".join(lines[:3]) + "\n"
    cut_metrics(path, last_step=0)
    assert path.read_text() == ""


def test_damaged_lines_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2, "\xff\x00": 1}\n\xfe\x00\x00\n[1]\n{"step": 3}\n')
    cut_metrics(path, last_step=3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]


def test_file_appears_when_absent(tmp_path: Path) -> None:
    cut_metrics(tmp_path / "new" / "metrics.jsonl", last_step=5)
    assert (tmp_path / "new" / "metrics.jsonl").read_text() == ""


def test_callback_appends_one_line_and_only_on_the_main_rank(tmp_path: Path) -> None:
    callback = JsonlCallback(tmp_path / "m")
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for main in (True, False):
        state = TrainerState(global_step=7, is_world_process_zero=main)
        callback.on_log(arguments, state, TrainerControl(), logs={"loss": 1.5})
    assert [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()] == [{"step": 7, "loss": 1.5}]
