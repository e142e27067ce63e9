import logging

from transformers import TrainerControl, TrainerState, TrainingArguments

from trainer.run.progress_bar import LineCallback, describe, progress_callbacks


def test_describe_names_losses_and_validation_metrics() -> None:
    logs = {"loss": 1.23456, "tla": 2, "tla_weighted": 0.6, "lhsm": 0.5, "grad_norm": 9}
    assert describe(logs) == "tla 2  lhsm 0.5  loss 1.235", "terms before their weights come first"
    assert describe({"eval_kl": 0.5, "eval_tokens": 7, "eval_bits_per_byte": 1}) == "kl 0.5  bits_per_byte 1"


def test_lines_are_rare_but_each_validation_has_one(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO, "trainer")
    callback = LineCallback()
    arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=9, use_cpu=True)
    for logs in ({"loss": 1.0}, {"loss": 2.0}, {"eval_kl": 3.0}):
        callback.on_log(arguments, TrainerState(global_step=4), TrainerControl(), logs=logs)
    assert [record.getMessage() for record in caplog.records] == [
        "step 4 of 9: loss 1",
        "step 4 of 9: validation kl 3",
    ]


def test_no_bar_where_there_is_no_terminal() -> None:
    assert isinstance(progress_callbacks()[0], LineCallback)
