from typing import Any

import pytest

from schemas.errors import UserError
from schemas.load import validate
from schemas.rounds_config import RoundsConfig, of_round

SMALLEST: dict[str, Any] = {
    "rounds": 2,
    "generate": {"prompts": {"sources": [{"path": "prompts.jsonl"}]}},
    "score": {"teacher": {"path": "models/teacher"}},
    "train": {"data": {"cache": "runs/cache"}, "student": {"checkpoint": "models/student"}},
    "output": "runs/rounds",
}


def read(**changes: Any) -> RoundsConfig:
    return validate(RoundsConfig, {**SMALLEST, **changes}, "rounds.yaml")


def test_defaults() -> None:
    config = read()
    assert (config.mixture.share, config.mixture.caches, config.keep) == (0.5, "newest", "latest")
    assert config.score.capture is None


def test_capture_is_completed_as_in_a_caching_run() -> None:
    capture = read(score={**SMALLEST["score"], "capture": {"logits": {"k": 8}}}).score.capture
    assert capture is not None
    assert capture.draws is not None
    assert capture.logits.k == 8


def test_one_value_or_one_for_each_round() -> None:
    config = read(steps=[5, 6], lr=1e-4)
    assert [of_round(config.steps, n) for n in (1, 2)] == [5, 6]
    assert [of_round(config.lr, n) for n in (1, 2)] == [1e-4, 1e-4]
    assert of_round(config.divergence, 2) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"generate": {**SMALLEST["generate"], "generator": {"path": "x"}}},
            "generate.generator.path: each round sets",
        ),
        ({"generate": {**SMALLEST["generate"], "output": {"path": "x"}}}, "generate.output.path: each round sets it"),
        ({"score": {**SMALLEST["score"], "output": {"path": "x"}}}, "score.output.path: each round sets it"),
        ({"score": {**SMALLEST["score"], "corpus": {"sources": [{"path": "x"}]}}}, "score.corpus.sources: each round"),
        ({"train": {**SMALLEST["train"], "output": "x"}}, "train.output: each round sets it; leave it out; got 'x'"),
        ({"train_config": "train.yaml"}, "set exactly one of train and train_config"),
        ({"train": None}, "set exactly one of train and train_config"),
        ({"lr": [1e-4]}, "lr: 1 values for 2 rounds; give one, or one for each"),
        ({"mixture": {"caches": "all"}}, "mixture.caches: all trains on the caches of all rounds; set keep: caches"),
        ({"mixture": {"share": 0}}, "mixture.share: "),
        ({"rounds": 0}, "rounds: "),
        ({"divergence": "backward"}, "'forward', 'reverse' or 'jsd'; got 'backward'"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read(**changes)
    assert message in str(caught.value)
