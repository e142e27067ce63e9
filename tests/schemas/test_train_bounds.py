"""Every number of a training configuration has bounds, and nothing beyond them is accepted."""

import math
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from schemas.errors import UserError
from schemas.load import validate
from schemas.train_config import TrainConfig

TRIED = (0, -1, 1, 2**31, 2**32, 2**63, 10**20, 0.5, float("nan"), float("inf"), "")
BASE: dict[str, Any] = {
    "data": {"cache": [{"url": "runs/cache"}], "local_copies": {"folder": "copies"}},
    "student": {"checkpoint": "models/student", "ffn": {"remove": 0.5}},
    "losses": {
        "cross_entropy": {"weight": {"start": 1, "end": 1}},
        "alm": {"weight": {"start": 1, "end": 1}},
        "lhsm": {"weight": {"start": 1, "end": 1}},
        "apc": {"weight": {"start": 1, "end": 1}},
        "asr": {"weight": {"start": 1, "end": 1}},
        "tla": {"weight": {"start": 1, "end": 1}},
    },
    "optimizer": {},
    "loop": {"samples": {}},
    "quantization": {"activations": {"clip": 99}},
    "output": "runs/student",
}
STEPS = (1, 2**31 - 1, int)
WEIGHT = (0, 1e6, float)
HOLD = (0, 1 - 1e-9, float)
BOUNDS: dict[str, tuple[float, float, type]] = {
    "data.cache.0.weight": (1e-9, 1e9, float),
    "data.cache.0.limit": (1, 10**12, int),
    "data.local_copies.max_gib": (1e-300, 2**30, float),
    "data.validation_fraction": (0, 1 - 1e-9, float),
    "data.shards_mixed": STEPS,
    "data.pack_tokens": (2, 2**24, int),
    "data.num_workers": (0, 512, int),
    "student.adapter.r": (1, 65536, int),
    "student.adapter.alpha": (1, 2**20, int),
    "student.adapter.dropout": (0, 1 - 1e-9, float),
    "student.ffn.remove": (1e-300, 1 - 1e-9, float),
    "student.ffn.samples": (1, 10**12, int),
    **{
        f"losses.{loss}.weight.{key}": bounds
        for loss in ("tla", "cross_entropy", "alm", "lhsm", "apc", "asr")
        for key, bounds in (("start", WEIGHT), ("end", WEIGHT), ("hold", HOLD))
    },
    "losses.tla.temperature": (1e-3, 1000 - 1e-9, float),
    "losses.alm.temperature": (1, 10_000, float),
    "losses.tla.jsd_beta": (1e-9, 1 - 1e-9, float),
    "optimizer.lr": (1e-300, 10, float),
    "optimizer.warmup_steps": (0, 2**31 - 1, int),
    "optimizer.weight_decay": (0, 100, float),
    "optimizer.eps": (1e-15, 1, float),
    "optimizer.max_grad_norm": (1e-300, 1e9, float),
    "quantization.calibration_samples": (1, 10**12, int),
    "quantization.scale_lr": (1e-300, 10, float),
    "quantization.activations.clip": (50.000001, 100, float),
    "quantization.activations.levels": (3, 255, int),
    "loop.epochs": (1e-300, 10_000, float),
    "loop.max_steps": STEPS,
    "loop.micro_batch_size": (1, 65536, int),
    "loop.gradient_accumulation": (1, 65536, int),
    "loop.seed": (0, 2**32 - 1, int),
    "loop.log_every": STEPS,
    "loop.save_every": STEPS,
    "loop.keep_checkpoints": STEPS,
    "loop.validate_every": STEPS,
    "loop.early_stopping_patience": STEPS,
    "loop.samples.prompts": (1, 32, int),
    "loop.samples.tokens": (1, 1024, int),
}
LISTED = {  # fields of several numbers, and others: one value that is tried in place of one of them, and its bounds
    "student.from_layers": (0, 2**16 - 1, int),
    "student.ffn.width": (64, 2**31 - 64, int),  # in place of `remove`
    "losses.apc.student_heads": (0, 2**20, int),
    "optimizer.betas": (0, 1 - 1e-9, float),
    "losses.apc.student_layer": (1e-9, 2**16, float),
}


def with_value(key: str, value: Any) -> TrainConfig:
    """The base configuration with one value."""

    def placed(tree: Any, path: list[str]) -> Any:
        if not path:
            return value
        if isinstance(tree, list):
            return [placed(tree[int(path[0])], path[1:])]
        return {**tree, path[0]: placed(tree.get(path[0], {}), path[1:])}

    base = BASE | {"quantization": None} if key.startswith("student.adapter") else BASE  # one of the two
    return validate(TrainConfig, placed(base, key.split(".")), "train.yaml")


def numeric_fields(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Dotted names of all fields that may hold a number."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        for part in _parts(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                found |= numeric_fields(part, f"{prefix}{name}.")
            elif part in (int, float):
                found.add(prefix + name)
    return found


def _parts(annotation: Any) -> set[Any]:
    arguments = typing.get_args(annotation)
    if not arguments or typing.get_origin(annotation) is typing.Literal:
        return {annotation}
    return {part for argument in arguments for part in _parts(argument)}


def test_the_table_has_every_number() -> None:
    table = {key.replace(".0.", ".") for key in (*BOUNDS, *LISTED)}
    pairs = {"losses.lhsm.pairs.teacher", "losses.lhsm.pairs.student"}
    assert numeric_fields(TrainConfig) == table | pairs


@pytest.mark.parametrize("value", TRIED, ids=str)
@pytest.mark.parametrize("key", BOUNDS)
def test_a_number_is_accepted_if_it_is_within_its_bounds(key: str, value: Any) -> None:
    low, high, kind = BOUNDS[key]
    fits = not isinstance(value, str) and math.isfinite(value) and low <= value <= high
    if kind is int and isinstance(value, float):
        fits = False
    if fits:
        found: Any = with_value(key, value)
        for part in key.split("."):
            found = found[int(part)] if part.isdecimal() else getattr(found, part)
        assert found == value
        return
    with pytest.raises(UserError) as caught:
        with_value(key, value)
    assert str(caught.value).startswith(
        "train.yaml: data.cache" if key.startswith("data.cache") else f"train.yaml: {key}"
    )


@pytest.mark.parametrize(("key", "edge"), [(key, edge) for key, bounds in BOUNDS.items() for edge in bounds[:2]])
def test_the_bounds_themselves_are_accepted(key: str, edge: float) -> None:
    with_value(key, edge)


@pytest.mark.parametrize("value", [-1, 2**31, 2**63, 10**20, float("nan"), float("inf"), ""], ids=str)
@pytest.mark.parametrize("key", LISTED)
def test_numbers_in_lists(key: str, value: Any) -> None:
    changes = {
        "student.from_layers": lambda v: with_value("student", {"teacher": "t", "from_layers": [0, v]}),
        "student.ffn.width": lambda v: with_value("student", {"teacher": "t", "ffn": {"width": v}}),
        "losses.apc.student_heads": lambda v: with_value(key, [0, v]),
        "optimizer.betas": lambda v: with_value(key, [0.9, v]),
        "losses.apc.student_layer": lambda v: with_value(key, v),
    }
    changes[key](0.5 if LISTED[key][2] is float else LISTED[key][0])
    with pytest.raises(UserError, match=rf"^train\.yaml: {key}"):
        changes[key](value)


def test_the_number_of_rows_of_a_run_is_bounded() -> None:
    loop = {"max_steps": 2**31 - 1, "micro_batch_size": 65536, "gradient_accumulation": 65536}
    with pytest.raises(UserError, match=r"loop: max_steps × micro_batch_size × gradient_accumulation are \d+ rows, "):
        with_value("loop", loop)
    with_value("loop", {**loop, "micro_batch_size": 2, "gradient_accumulation": 2})


PATHS = (
    "data.cache",
    "data.cache.0.url",
    "data.validation_cache",
    "data.local_copies.folder",
    "student.checkpoint",
    "output",
)


@pytest.mark.parametrize("key", PATHS)
def test_the_home_folder_is_expanded_in_every_path(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    found: Any = with_value(key, "~/x y")
    for part in key.split("."):
        found = found[int(part)] if part.isdecimal() else getattr(found, part)
    assert found == "/home/me/x y"
    assert with_value("data.cache", "s3://bucket/~x").data.shares[0].url == "s3://bucket/~x"
    for wrong in ("", "a\0b"):
        with pytest.raises(UserError):
            with_value(key, wrong)


def test_the_home_folder_is_expanded_in_paths_of_students(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert with_value("student", {"config": "~/c"}).student.config == "/home/me/c"
    pruned = with_value("student", {"teacher": "~", "from_layers": [1]}).student
    assert pruned.teacher == str(Path("/home/me"))
