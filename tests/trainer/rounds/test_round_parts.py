"""Configurations of a round's parts, and of rounds that cannot be."""

from pathlib import Path
from typing import Any

import pytest

from schemas.errors import UserError
from schemas.train_config import CacheShare, TrainConfig
from support.models import write_random_teacher
from support.small_rounds import rounds_config, rounds_tree, write_small_rounds
from trainer.rounds.round_parts import generating, scoring, starting, training
from trainer.rounds.round_settings import check_tokenizers, settled
from trainer.rounds.rounds_place import read_place, write_place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_rounds(tmp_path_factory.mktemp("rounds"))


@pytest.fixture
def made(folder: Path, tmp_path: Path):
    """``made(**changes)``: the settings of rounds with these changes."""
    return lambda **changes: settled(rounds_config(folder, tmp_path / "out", **changes))


def shares(config: TrainConfig) -> list[CacheShare]:
    assert isinstance(config.data.cache, list)
    return config.data.cache


def test_a_round_starts_where_the_last_one_ended(made, folder: Path, tmp_path: Path) -> None:
    settings = made()
    final = tmp_path / "out/round-001/train/final"
    assert [generating(settings, n).generator.path for n in (1, 2)] == [str(folder / "student"), str(final)]
    assert [training(settings, n).student.checkpoint for n in (1, 2)] == [str(folder / "student"), str(final)]
    assert [generating(settings, n).seed for n in (1, 2)] == [0, 1]
    assert [training(settings, n).loop.seed for n in (1, 2)] == [0, 1]
    assert training(settings, 2).output == str(tmp_path / "out/round-002/train")


def test_the_teacher_reads_the_replies_and_stores_what_the_base_cache_does(made, tmp_path: Path) -> None:
    config = scoring(made(), 2)
    (source,) = config.corpus.sources
    assert (source.path, source.format) == (str(tmp_path / "out/round-002/replies"), "generated")
    assert config.corpus.max_tokens == 64 + 40
    assert scoring(made(score={"corpus": {"max_tokens": 99}}), 1).corpus.max_tokens == 99
    assert config.capture.logits.k == 16
    assert config.capture.draws is not None


def test_the_mixture_is_by_share(made, folder: Path, tmp_path: Path) -> None:
    base, own = shares(training(made(mixture={"share": 0.25}), 2))
    assert (base.url, base.weight) == (str(folder / "base"), 0.75)
    assert (own.url, own.weight) == (str(tmp_path / "out/round-002/cache"), 0.25)
    several = [{"url": str(folder / "base"), "weight": weight, "layers": ["base"]} for weight in (3, 1)]
    mixed = shares(training(made(train=_with_caches(folder, several), mixture={"caches": "all"}, keep="caches"), 2))
    assert [share.weight for share in mixed] == [0.375, 0.125, 0.25, 0.25]
    assert [share.layers for share in mixed] == [["base"], ["base"], None, None]
    assert len(shares(training(made(mixture={"share": 1}), 2))) == 1


def _with_caches(folder: Path, caches: object) -> dict[str, Any]:
    return rounds_tree(folder, folder)["train"] | {"data": {"cache": caches}}


def test_schedules_are_one_value_or_one_for_each_round(made) -> None:
    settings = made(lr=[1e-4, 5e-5], steps=7, divergence=["forward", "reverse"], train=_top_k(made))
    configs = [training(settings, n) for n in (1, 2)]
    assert [config.optimizer.lr for config in configs] == [1e-4, 5e-5]
    assert [config.loop.max_steps for config in configs] == [7, 7]
    assert [config.losses.tla.divergence for config in configs] == ["forward", "reverse"]


def _top_k(made) -> dict[str, Any]:
    return {"losses": {"tla": {"target": "top_k"}}}


@pytest.mark.parametrize("start", [{"from_layers": [0]}, {"ffn": {"width": 64}}])
def test_the_training_may_be_a_file_and_the_student_cut_from_its_teacher(
    folder: Path, tmp_path: Path, start: dict[str, Any]
) -> None:
    tree = rounds_tree(folder, tmp_path / "out")
    student = {"teacher": str(folder / "teacher")} | start
    own = TrainConfig.model_validate(tree.pop("train") | {"student": student, "output": "elsewhere"})
    (tmp_path / "train.json").write_text(own.model_dump_json())
    config = rounds_config(folder, tmp_path / "out").model_copy(
        update={"train": None, "train_config": str(tmp_path / "train.json")}
    )
    settings = settled(config)
    assert starting(settings).output == str(tmp_path / "out/start")
    first = training(settings, 1).student
    assert first.checkpoint == generating(settings, 1).generator.path == str(tmp_path / "out/start/student-init")
    assert (first.teacher, first.from_layers, first.ffn) == (None, None, None)
    check_tokenizers(settings)


def test_a_checkpoint_is_cut_before_the_first_round_only(made, folder: Path, tmp_path: Path) -> None:
    settings = made(train={"student": {"checkpoint": str(folder / "student"), "ffn": {"width": 64}}})
    assert settings.student_before(1) == tmp_path / "out/start/student-init"
    assert training(settings, 1).student.ffn is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"divergence": ["forward", "reverse"], "train": {"losses": {}}},
            "divergence: reverse (round 2) cannot be estimated from draws; use ",
        ),
        ({"score": {"capture": {"logits": {"k": 8}}}}, "score.capture.logits: "),
        ({"train": {"student": {"checkpoint": "x", "adapter": {}}}}, "train.student.adapter: the next round starts"),
        ({"train": {"student": {"config": "x"}}}, "train.student.config: random weights write nothing to learn from"),
        ({"train": {"data": {"cache": [{"url": "a"}, {"url": "b"}]}}}, "train.data.cache: set a weight for each of"),
        ({"train": {"data": {"cache": "/nowhere"}}}, "/nowhere/manifest.json: not found"),
    ],
)
def test_rounds_that_cannot_be_are_refused_before_anything_runs(made, changes, message: str) -> None:
    with pytest.raises(UserError) as caught:
        made(**changes)
    assert message in str(caught.value)


def test_a_student_with_another_tokenizer_is_refused(made, tmp_path: Path, folder: Path) -> None:
    other = write_random_teacher(tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"<|im_start|>"', '"<|begin|>"'))
    with pytest.raises(UserError, match=r"train\.student\.checkpoint: .*other: its tokenizer .* one tokenizer"):
        check_tokenizers(made(train={"student": {"checkpoint": str(other)}}))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"generate": {"sampling": {"temperature": 0.5}}}, "generate.sampling.temperature: 1.0 there, 0.5 now"),
        ({"lr": [1e-5, 2e-5]}, "schedule.2.lr: 1e-05 there, 2e-05 now"),
        ({"mixture": {"share": 0.25}}, "mixture.share: 0.5 there, 0.25 now"),
        ({"train": {"optimizer": {"lr": 1e-5, "weight_decay": 0.5}}}, "train.optimizer.weight_decay: 0.01 there"),
        ({"score": {"teacher": {"path": "x"}}}, "score.teacher.path: "),
    ],
)
def test_other_settings_do_not_continue_and_are_named(made, tmp_path: Path, changes, key: str) -> None:
    (tmp_path / "out").mkdir()
    write_place(made(), {}, None)
    with pytest.raises(UserError) as caught:
        read_place(made(**changes))
    assert key in str(caught.value)
    assert "rounds were begun with other settings" in str(caught.value)


def test_settings_of_the_machine_and_more_rounds_continue(made, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert read_place(made()) is None
    write_place(made(), {"prompts": 8}, None)
    changes: dict[str, Any] = {"rounds": 3, "lr": [1e-5, 1e-5, 3e-6], "keep": "none", "least_accepted": 0.1}
    changes |= {"train": {"loop": {"max_steps": 3, "micro_batch_size": 2, "gradient_accumulation": 2}}}
    changes |= {"score": {"engine": {"kind": "transformers", "device": "cuda"}}, "launcher": ["torchrun"]}
    present = read_place(made(**changes))
    assert present is not None
    assert present.counts == {"prompts": 8}
    write_place(made(**changes), present.counts, present)
    with pytest.raises(UserError, match=r"schedule\.3\.lr: 3e-06 there, 1e-05 now"):
        read_place(made(rounds=3))
