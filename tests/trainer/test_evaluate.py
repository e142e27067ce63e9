import numpy as np
import pytest
import torch

from schemas.errors import UserError
from trainer.data import evaluation_loader
from trainer.evaluate import evaluate, evaluate_folder
from trainer.order import sorted_rows
from trainer.student import load_model


@pytest.fixture
def student(student_folder):
    return load_model(str(student_folder), key="student", dtype=torch.float32)


def test_equals_the_definitions_sample_by_sample(cache, student) -> None:
    totals, count = np.zeros(4), 0
    for sample in cache.samples[:9]:
        with torch.no_grad():
            z = student(torch.from_numpy(sample["input_ids"])[None]).logits[0].double().numpy()
        log_q = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
        for t in np.flatnonzero(sample["loss_mask"]):
            stored = sample["logprobs"][t] > -np.inf
            ids, p = sample["ids"][t][stored], np.exp(sample["logprobs"][t][stored].astype(np.float64))
            q = np.exp(log_q[t][ids])
            p, q = np.append(p, 1 - p.sum()), np.append(q, 1 - q.sum())
            totals += [
                np.sum(p * np.log(p / q)),
                -log_q[t][sample["input_ids"][t + 1]],
                z[t].argmax() == ids[0],
                -sample["next_logprob"][t],
            ]
            count += 1
    loader = evaluation_loader(cache, sorted_rows(np.arange(9), cache.num_tokens), 4)
    measured = evaluate(student, loader, unit_column=0, keep_only_masked=True)
    names = ("kl", "cross_entropy", "top1_agreement", "teacher_cross_entropy")
    np.testing.assert_allclose([measured[name] for name in names], totals / count, rtol=2e-4)
    assert measured["perplexity"] == pytest.approx(np.exp(measured["cross_entropy"]))
    assert measured["tokens"] == count


def test_model_keeps_its_mode_and_gets_no_gradients(cache, student) -> None:
    student.train()
    evaluate(student, evaluation_loader(cache, sorted_rows(np.arange(4), cache.num_tokens), 2), 0, True)
    assert student.training
    assert all(weight.grad is None for weight in student.parameters())


def test_nothing_counts(cache, student) -> None:
    cache.samples[0] = {**cache.samples[0], "loss_mask": np.zeros_like(cache.samples[0]["loss_mask"])}
    with pytest.raises(UserError, match="no token of these samples counts"):
        evaluate(student, evaluation_loader(cache, sorted_rows(np.array([0]), cache.num_tokens), 1), 0, True)


def test_the_teacher_agrees_with_its_own_cache(cache, teacher_model) -> None:
    measured = evaluate(
        teacher_model, evaluation_loader(cache, sorted_rows(np.arange(24), cache.num_tokens), 4), 0, True
    )
    assert measured["kl"] < 1e-6
    assert measured["top1_agreement"] == 1.0
    assert measured["cross_entropy"] == pytest.approx(measured["teacher_cross_entropy"], rel=1e-6)


def test_folder_over_a_limited_or_held_out_part(real_cache, student_folder) -> None:
    seen: list[tuple[int, int]] = []
    cache = str(real_cache)
    limited = evaluate_folder(
        str(student_folder), cache, limit=5, batch_size=2, advance=lambda *args: seen.append(args)
    )
    assert limited["samples"] == 5
    assert seen == [(2, 5), (4, 5), (5, 5)]
    held_out = evaluate_folder(str(student_folder), cache, validation_fraction=0.3)
    everything = evaluate_folder(str(student_folder), cache)
    assert 0 < held_out["samples"] < everything["samples"] == 40
    with pytest.raises(UserError, match="holds out no sample"):
        evaluate_folder(str(student_folder), cache, validation_fraction=1e-9)
