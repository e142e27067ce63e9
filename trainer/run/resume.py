"""Which settings may change at resume: one table, used by the trainer and rendered as ``docs/resume.md``.

It covers every key of the configuration. Refused are changes that would make the results those of neither run; all
others take effect and are logged.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from schemas.train_config import LossConfig, TrainConfig

Effect = Literal["refused", "honoured", "by content"]


@dataclass(frozen=True)
class Rule:
    """One line of the table."""

    keys: tuple[str, ...]
    effect: Effect
    note: str
    """The effect, for the documentation; for honoured changes also for the log."""


RULES = (
    Rule(("data.cache",), "by content", "may move; another manifest, or another mixture of caches, is refused"),
    Rule(
        ("student.checkpoint", "student.config", "student.teacher", "student.from_layers", "student.ffn"),
        "by content",
        "may move; other initial weights or another architecture are refused",
    ),
    Rule(
        ("data.validation_fraction", "data.shards_mixed", "data.packing", "data.pack_tokens", "loop.seed"),
        "refused",
        "the rows or their order would change",
    ),
    Rule(
        ("student.dtype", "loop.bf16", "loop.parallel"),
        "refused",
        "the precision or layout of the weights would change",
    ),
    Rule(("student.adapter",), "refused", "other weights would be trained; to merge, `train-student merge`"),
    Rule(
        tuple(f"losses.{name}" for name in LossConfig.model_fields),
        "refused",
        "the objective would change",
    ),
    Rule(
        ("optimizer.weight_decay", "optimizer.betas", "optimizer.eps"),
        "refused",
        "the optimiser states would not fit",
    ),
    Rule(
        ("loop.micro_batch_size", "loop.gradient_accumulation"),
        "honoured",
        "rows per step (micro-batch × accumulation × processes) must stay the same, else refused",
    ),
    Rule(
        ("optimizer.lr", "optimizer.warmup_steps"),
        "honoured",
        "each step uses the new schedule's rate at that step",
    ),
    Rule(("optimizer.max_grad_norm",), "honoured", "from the next step on"),
    Rule(
        ("loop.max_steps", "loop.epochs"),
        "honoured",
        "the schedules of rate and loss weights span the new number of steps from here on; a run past its new end "
        "writes `final` at once",
    ),
    Rule(("loop.save_every", "loop.log_every", "loop.validate_every"), "honoured", "from the next step on"),
    Rule(("loop.keep_checkpoints",), "honoured", "from the next checkpoint on"),
    Rule(
        ("loop.early_stopping_patience",),
        "honoured",
        "raised or unset, a run that stopped early continues; newly set, an earlier best counts only if its checkpoint "
        "still exists; unset, `final` is the last step's",
    ),
    Rule(
        ("data.validation_cache",),
        "honoured",
        "with another one the best validation is forgotten and early stopping starts over",
    ),
    Rule(("data.align",), "refused", "other rows would be taught"),
    Rule(("data.retarget_cache",), "honoured", "no effect on results"),
    Rule(("data.on_corrupt",), "honoured", "from the next row on"),
    Rule(
        ("data.local_copies", "data.num_workers", "data.require_signature", "data.validation_digest", "loop.scratch"),
        "honoured",
        "no effect on results",
    ),
    Rule(
        ("student.attention", "loop.compile", "loop.gradient_checkpointing", "loop.cpu_offload"),
        "honoured",
        "affects rounding only",
    ),
    Rule(("student.trust_remote_code",), "honoured", "from now on"),
    Rule(("loop.log_gradient_norms",), "honoured", "from the next line of metrics on"),
    Rule(
        tuple(f"quantization.{name}" for name in ("bits", "group_size", "targets", "calibration_samples")),
        "by content",
        "other initial weights or scales are refused",
    ),
    Rule(("quantization.scale", "quantization.activations"), "refused", "the weights would mean something else"),
    Rule(("quantization.scale_lr",), "honoured", "each step uses the new schedule's rate at that step"),
    Rule(("quantization.formats", "quantization.check"), "honoured", "for what is written at the end"),
    Rule(("loop.report_to", "loop.project"), "honoured", "from now on; W&B, MLflow and Trackio continue the same run"),
    Rule(("loop.samples",), "honoured", "for the continuations from now on"),
    Rule(("loop.resume",), "honoured", "false deletes the checkpoints and starts over"),
    Rule(("output",), "honoured", "a folder or store moved as a whole is resumed; another one is another run"),
)


def rule_of(key: str) -> Rule | None:
    """Return the rule for a key of the configuration."""
    return next((rule for rule in RULES if key in rule.keys), None)


def settings_of(config: TrainConfig, rows_per_step: int) -> dict[str, Any]:
    """Flatten the configuration for a checkpoint: every key, as JSON values; of caches URLs and mixture."""
    tree = config.model_dump(mode="json")
    groups = {name: group for name, group in tree.items() if isinstance(group, dict)}
    settings = {f"{name}.{key}": value for name, group in groups.items() for key, value in group.items()}
    settings["data.cache"] = [share.url for share in config.data.shares]
    shares = [share.model_dump(include={"weight", "layers", "limit"}) for share in config.data.shares]
    return {"output": config.output, **settings, "data.shares": shares, "rows per step": rows_per_step}


def changes(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any, Rule | None]]:
    """Yield (key, value before, value now, rule) of every difference, down to single values.

    Keys that only one side has are skipped: another version of the software added or removed them.
    """
    for key in [key for key in now if key in before]:
        for path, old, new in _differences(key, before[key], now[key]):
            yield path, old, new, rule_of(key)


def _differences(path: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in now:
            if key in before:
                yield from _differences(f"{path}.{key}", before[key], now[key])
    elif before != now:
        yield path, before, now


PAGE = """# Resuming a run

`train-student run` continues from the newest complete checkpoint in `output`. Data, student and objective must be what
they were. Most other settings may change and take effect; the log names every one that did. This page is generated by
`python -m trainer.run.resume > docs/resume.md` from the table that the trainer uses.

| keys | a change is | note |
|---|---|---|
{rows}

The number of processes may change, and so may the machines, as long as the rows per step stay the same. A checkpoint is
complete when every file has the size and sha256 that its mark, `checkpoint.json`, lists. One that is not is named in
the log, and the one before is used; where no complete one is left, the run is refused. With `loop.resume: false` the
checkpoints are deleted and the run starts over.
"""


def page() -> str:
    """Render ``docs/resume.md``."""
    shown = {"by content": "compared by content"}
    lines = [
        (", ".join(f"`{key}`" for key in rule.keys), shown.get(rule.effect, rule.effect), rule.note) for rule in RULES
    ]
    return PAGE.format(rows="\n".join(f"| {keys} | {effect} | {note} |" for keys, effect, note in lines))


if __name__ == "__main__":
    print(page(), end="")
