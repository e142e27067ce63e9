"""A loss is a file, its settings, and a line in the table: two that the trainer does not have are added here."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from schemas.cache_config import CaptureConfig
from schemas.errors import UserError
from schemas.train_config import LossConfig, TrainConfig
from support.logged import read_metrics
from support.reference_rows import sparse_rows
from support.toy_losses import SmallStates, ToyLosses, ToyTrainConfig, ZLoss
from teacher_cache.output_head import OutputHead
from trainer.distiller import distill
from trainer.losses import head_chunks
from trainer.losses.objective import Objective
from trainer.losses.table import LOSSES
from trainer.losses.teacher_rows import TeacherRows

OFF = {"weight": {"start": 0, "end": 0}}


def weight(value: float) -> dict[str, Any]:
    return {"weight": {"start": value, "end": value}}


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "z_loss", ZLoss)
    monkeypatch.setitem(LOSSES, "small_states", SmallStates)


@pytest.fixture
def make_toy_config(make_config: Callable[..., TrainConfig]) -> Callable[..., ToyTrainConfig]:
    def make(steps: int = 6, **losses: Any) -> ToyTrainConfig:
        config = make_config(loop={"max_steps": steps, "log_gradient_norms": True})
        tree = config.model_dump(exclude={"losses"}) | {"losses": losses}
        return ToyTrainConfig.model_validate(tree)

    return make


def test_the_table_has_every_loss_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert list(LOSSES) == list(LossConfig.model_fields)
    with pytest.raises(NotImplementedError, match=r"losses\.z_loss: has settings but no entry in"):
        Objective(ToyLosses(), CaptureConfig())


def test_an_added_loss_trains_alone(make_toy_config) -> None:
    config = make_toy_config(steps=12, tla=OFF, z_loss={})
    assert distill(config)["ended"] == "completed"
    lines = read_metrics(config.output, "loss")
    assert [line["z_loss"] == line["loss"] == line["z_loss_weighted"] for line in lines] == [True] * 12
    assert lines[-1]["z_loss"] < 0.9 * lines[0]["z_loss"]
    assert "tla" not in lines[0]
    assert "- z-loss: weight 1.0\n" in (Path(config.output) / "final/README.md").read_text()


def test_added_losses_train_with_the_others(make_toy_config) -> None:
    own = {"cross_entropy": weight(0.5), "alm": weight(0.5), "asr": {}}
    config = make_toy_config(**own, z_loss=weight(0.25), small_states=weight(0.125))
    distill(config)
    names = ("tla", "cross_entropy", "alm", "asr", "z_loss", "small_states")
    for line in read_metrics(config.output, "loss"):
        assert tuple(line)[1 : len(names) + 2] == (*names, "loss"), "in the order of the table"
        assert line["loss"] == pytest.approx(sum(line[f"{name}_weighted"] for name in names), rel=1e-5)
        assert line["z_loss_weighted"] == pytest.approx(0.25 * line["z_loss"], rel=1e-5)
        assert all(line[f"{name}_gradient_norm"] > 0 for name in names)
    lines = read_metrics(config.output, "toy_scale")
    assert [lines[0]["toy_scale"] == 1, lines[-1]["toy_scale"] < 1] == [True, True], "it learns"
    assert "toy_scale.weight" in load_file(Path(config.output) / "checkpoint-6/model.safetensors")
    assert "toy_scale.weight" not in load_file(Path(config.output) / "final/model.safetensors")


def test_a_run_with_an_added_loss_resumes_exactly(make_toy_config) -> None:
    losses: dict[str, Any] = {"z_loss": weight(0.25), "small_states": {}}
    config = make_toy_config(**losses)
    distill(config)
    whole = read_metrics(config.output, "loss")
    shutil.rmtree(Path(config.output) / "checkpoint-6")
    for key, changed in (("z_loss.weight.start", weight(0.3)), ("z_loss", None)):
        with pytest.raises(UserError, match=rf"was trained with losses\.{key} = "):
            distill(make_toy_config(**losses | {"z_loss": changed}))
    distill(config)
    again = read_metrics(config.output, "loss")
    assert len(again) == len(whole) == 6
    for name in ("z_loss", "small_states", "toy_scale"):
        assert [line[name] for line in again] == pytest.approx([line[name] for line in whole], rel=1e-5)


def test_losses_that_are_not_configured_are_not_constructed() -> None:
    objective = Objective(ToyLosses.model_validate({"z_loss": OFF}), CaptureConfig())
    assert (list(objective.losses), objective.signals) == (["tla"], ("tokens", "logits"))
    with pytest.raises(ValueError, match="at least one loss other than asr"):
        ToyLosses.model_validate({"tla": OFF, "z_loss": OFF, "asr": {}})


def test_gradients_of_three_losses_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64 and autograd, over several chunks of rows."""
    n, width, vocabulary, k = 23, 8, 31, 5
    monkeypatch.setattr(head_chunks, "CPU_BYTES", 7 * 4 * vocabulary)
    generator = torch.Generator().manual_seed(0)
    hidden, weight_VD, teacher = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((n, width), (vocabulary, width), (n, vocabulary))
    )
    ids, logprobs, partition = sparse_rows(3 * teacher, k, 1.0)
    following = torch.randint(0, vocabulary, (n,), generator=generator)
    leaves = hidden.requires_grad_(), weight_VD.requires_grad_()

    shares = {"tla": 0.75, "cross_entropy": 0.5, "z_loss": 0.3}
    settings = ToyLosses.model_validate({name: weight(share) for name, share in shares.items()})
    capture = CaptureConfig.model_validate({"logits": {"k": k, "temperatures": [1.0]}})
    rows = TeacherRows(ids, logprobs, partition[:, None], following, torch.zeros(n))
    loss, terms = Objective(settings, capture).head_terms(hidden, OutputHead(weight_VD), rows, progress=0.5)

    log_q = (hidden @ weight_VD.T).log_softmax(1)
    p, q = logprobs.exp(), log_q.gather(1, ids).exp()
    p_rest, q_rest = 1 - p.sum(1), 1 - q.sum(1)
    expected = {
        "tla": (p * (p / q).log()).sum() + (p_rest * (p_rest / q_rest).log()).sum(),
        "cross_entropy": -log_q.gather(1, following[:, None]).sum(),
        "z_loss": torch.logsumexp(hidden @ weight_VD.T, 1).square().sum(),
    }
    assert {term.name: term.weight for term in terms} == shares
    for term in terms:
        torch.testing.assert_close(term.total, expected[term.name].detach(), rtol=1e-10, atol=0)
    wanted = sum(share * expected[name] for name, share in shares.items())
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    for found, right in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(wanted, leaves), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-10)
