"""Terms of a batch: the same from the student, its hidden states and its logits, and however a step is cut."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from schemas.errors import UserError
from schemas.train_config import LossConfig
from support.other_tokenizers import other_tokenizer
from trainer.api import CacheDataset, DistillationLoss, StepTerms
from trainer.evaluate import evaluate_folder
from trainer.losses.schedule import weight_at

ROWS = 8
HEAD_LOSSES = {"tla": {"weight": {"start": 1.0, "end": 0.5}}, "cross_entropy": {"weight": {"start": 0.5, "end": 0.1}}}
Gradients = dict[str, torch.Tensor]


@pytest.fixture
def student(place: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(place / "models/student", dtype=torch.float64)


def opened(place: Path, losses: dict[str, Any] | None = None, **changes: Any) -> CacheDataset:
    settings = {"rows_per_step": ROWS, "steps": 5, **changes}
    return CacheDataset(place / "runs/demo/cache", HEAD_LOSSES if losses is None else losses, **settings)


def gradients(student: PreTrainedModel, found: list[StepTerms]) -> Gradients:
    student.zero_grad()
    for terms in found:
        terms.total.backward()
    return {name: each.grad.clone() for name, each in student.named_parameters() if each.grad is not None}


def assert_same(found: tuple[list[StepTerms], Gradients], wanted: tuple[list[StepTerms], Gradients]) -> None:
    sums = [{name: sum(each.terms[name] for each in side[0]) for name in side[0][0].terms} for side in (found, wanted)]
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-9, atol=0)
    totals = [sum(each.total.detach() for each in side[0]) for side in (found, wanted)]
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-9, atol=0)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        rounding = {"rtol": 1e-8, "atol": 1e-12} if gradient.dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-7}
        torch.testing.assert_close(found[1][name], gradient, **rounding)


@pytest.mark.parametrize("target", ["top_k", "final"])
@pytest.mark.parametrize("packing", [False, True])
def test_hidden_states_logits_and_student_give_the_same(
    place: Path, student: PreTrainedModel, packing: bool, target: str
) -> None:
    losses = HEAD_LOSSES | {"tla": HEAD_LOSSES["tla"] | {"target": target}}
    dataset = opened(place, losses, **({"packing": True, "pack_tokens": 96} if packing else {}))
    loss = DistillationLoss(dataset, student)
    batch = dataset.__getitems__([16, 17, 18])
    whole = [loss(student, batch)]
    wanted = whole, gradients(student, whole)

    hidden = student.model(**loss.inputs(batch)).last_hidden_state
    own = [loss.from_hidden(hidden, student.lm_head, batch)]
    assert_same((own, gradients(student, own)), wanted)

    logits = student(**loss.inputs(batch)).logits
    before = logits.detach().clone()
    own = [DistillationLoss(dataset).from_logits(logits, batch)]
    assert torch.equal(logits, before)
    assert_same((own, gradients(student, own)), wanted)


def test_features_of_ones_own_forward_pass(place: Path, student: PreTrainedModel) -> None:
    dataset = opened(place, {"tla": {}, "lhsm": {}, "asr": {}})
    loss = DistillationLoss(dataset, student)
    batch = dataset.__getitems__(range(4))
    whole = [loss(student, batch)]
    wanted = whole, gradients(student, whole)
    assert {"distillation_maps.weights.0", "lm_head.weight"} < set(wanted[1])
    with loss.recording() as recorded:
        hidden = student.model(**loss.inputs(batch)).last_hidden_state
    own = [loss.from_hidden(hidden, student.lm_head, batch, recorded)]
    assert set(own[0].terms) == {"tla", "lhsm", "asr"}
    assert_same((own, gradients(student, own)), wanted)
    with pytest.raises(UserError, match="recorded: needed for lhsm, asr"):
        loss.from_hidden(hidden, student.lm_head, batch)
    with pytest.raises(UserError, match=r"from_logits: logits are not enough for lhsm, asr; use from_hidden"):
        loss.from_logits(hidden, batch)
    loss.detach()
    assert "distillation_maps" not in dict(student.named_modules())
    with pytest.raises(UserError, match=r"losses\.lhsm, losses\.asr read features inside the student"):
        DistillationLoss(dataset)


def test_features_are_compared_without_autocast(place: Path) -> None:
    student = AutoModelForCausalLM.from_pretrained(place / "models/student")
    dataset = opened(place, {"tla": {}, "lhsm": {}})
    loss, batch = DistillationLoss(dataset, student), dataset[3]
    with torch.autocast("cpu", torch.bfloat16), loss.recording() as recorded:
        hidden = student.model(**loss.inputs(batch)).last_hidden_state
        within = loss.from_hidden(hidden, student.lm_head, batch, recorded).terms
    beyond = loss.from_hidden(hidden, student.lm_head, batch, recorded).terms
    assert within["lhsm"] == beyond["lhsm"]
    assert within["tla"] != beyond["tla"]  # the head's product is in 16 bits


def test_a_student_may_be_an_adapter(place: Path, student: PreTrainedModel) -> None:
    dataset = opened(place, {"tla": {}, "asr": {}})
    batch = dataset[0]
    bare = DistillationLoss(dataset, student)
    wanted = bare(student, batch).total
    bare.detach()
    adapted = get_peft_model(student, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    found = DistillationLoss(dataset, adapted)(adapted, batch).total  # a new adapter changes nothing
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
    found.backward()
    trained = {name.split(".")[-3] for name, each in adapted.named_parameters() if each.grad is not None}
    assert trained == {"lora_A", "lora_B"}


def test_maps_that_an_adapter_has_frozen_are_refused(place: Path, student: PreTrainedModel) -> None:
    dataset = CacheDataset(place / "runs/demo/cache", {"tla": {}, "lhsm": {}}, rows_per_step=4, steps=1)
    loss = DistillationLoss(dataset, student)
    adapted = get_peft_model(student, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with pytest.raises(UserError, match=r"the maps that losses.lhsm learn are frozen; make the loss of the student"):
        loss(adapted, next(iter(dataset.loader(4))))
    loss.detach()
    assert DistillationLoss(dataset, adapted)(adapted, next(iter(dataset.loader(4)))).total.requires_grad


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_micro_batches_add_up_to_their_step(place: Path, student: PreTrainedModel, batch_size: int) -> None:
    dataset = opened(place, {"tla": {}, "lhsm": {}})
    loss = DistillationLoss(dataset, student)
    first = [batch for batch in dataset.loader(batch_size) if batch["step"] == 0]
    lengths = {int(batch["loss_mask"].sum()) for batch in first}
    assert len(lengths) > 1  # a mean of means would be another number
    found = [loss(student, batch) for batch in first]
    whole = [loss(student, dataset.__getitems__(range(ROWS)))]
    assert_same((found, gradients(student, found)), (whole, gradients(student, whole)))


def test_weights_follow_the_steps(place: Path, student: PreTrainedModel) -> None:
    dataset = opened(place)
    loss = DistillationLoss(dataset, student)
    settings = LossConfig.model_validate(HEAD_LOSSES)
    for batch in dataset.loader(ROWS):
        found = loss(student, batch)
        progress = batch["step"] / 5
        assert found.weights == {
            "tla": weight_at(settings.tla.weight, progress),
            "cross_entropy": weight_at(settings.cross_entropy.weight, progress),
        }
        total = sum(found.weights[name] * found.terms[name] for name in found.terms)
        torch.testing.assert_close(found.total.detach(), total, rtol=1e-12, atol=0)
    assert progress == 0.8


def test_a_student_is_validated_on_what_is_held_out(place: Path, student: PreTrainedModel, tmp_path: Path) -> None:
    cache, losses = str(place / "runs/demo/cache"), {"tla": {}}
    student.save_pretrained(tmp_path)
    fifth = evaluate_folder(str(tmp_path), cache, validation_fraction=0.2, dtype="float64")
    whole = evaluate_folder(str(tmp_path), cache, dtype="float64")
    other: dict[str, Any] = {"rows_per_step": 8, "steps": 1}
    for dataset, wanted in (
        (CacheDataset(cache, losses, validation_fraction=0.2, **other), fifth),
        (CacheDataset(cache, losses, validation_cache=cache, **other), whole),
    ):
        for batch_size in (4, 3):
            found = DistillationLoss(dataset, student).validate(student.train(), batch_size)
            assert found == pytest.approx({name: wanted[name] for name in found}, rel=1e-9)
            assert {"kl", "cross_entropy", "top1_agreement", "bits_per_byte", "tokens"} <= found.keys()
            assert student.training
    assert fifth["tokens"] < whole["tokens"]
    with pytest.raises(UserError, match="nothing is held out; give the CacheDataset validation_fraction"):
        DistillationLoss(CacheDataset(cache, losses, **other), student).validate(student)


def test_bad_input_is_named(place: Path, student: PreTrainedModel) -> None:
    dataset = opened(place)
    batch = dataset[0]
    loss = DistillationLoss(dataset)
    with pytest.raises(UserError, match="made without a student"):
        loss(student, batch)
    length = batch["input_ids"].shape[1]
    with pytest.raises(UserError, match=rf"of shape \(1, 2, 3\), wanted \[1, {length}, …\]"):
        loss.from_logits(torch.zeros(1, 2, 3), batch)
    with pytest.raises(UserError, match=r"the batch has no step_rows"):
        DistillationLoss(dataset, student)(student, dataset.uncounted()[0])
    small = AutoModelForCausalLM.from_config(type(student.config)(**{**student.config.to_dict(), "vocab_size": 7}))
    with pytest.raises(UserError, match=r"the cache's tokenizer has \d+ tokens but the student's vocabulary has 7"):
        DistillationLoss(dataset, small)


def test_a_student_of_another_tokenizer_is_refused(place: Path, student: PreTrainedModel, tmp_path: Path) -> None:
    student.save_pretrained(tmp_path)
    other_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"the student's tokenizer .* is not the one the cache .*data\.align"):
        DistillationLoss(opened(place), AutoModelForCausalLM.from_pretrained(tmp_path))
