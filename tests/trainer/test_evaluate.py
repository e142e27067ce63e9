import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from schemas.cache_config import CacheConfig
from schemas.errors import UserError
from schemas.load import load_config
from support.models import write_random_teacher
from support.workspace import Workspace
from teacher_cache import job
from trainer.data.batches import evaluation_loader
from trainer.data.row_plan import SortedRows
from trainer.evaluate import evaluate, evaluate_folder
from trainer.student.build import load_model


@pytest.fixture
def student(student_folder):
    return load_model(student_folder, key="student", dtype=torch.float32)


def first_samples(cache, count: int, batch_size: int):
    """A loader of the first samples of a cache."""
    return evaluation_loader(cache, SortedRows(np.arange(count), cache.num_tokens[:count]), batch_size)


def test_equals_the_definitions_sample_by_sample(cache, student) -> None:
    totals, count = np.zeros(4), 0
    confidence, right = [], []
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
            confidence.append(np.exp(log_q[t]).max())
            right.append(z[t].argmax() == sample["input_ids"][t + 1])
    loader = first_samples(cache, 9, 4)
    measured = evaluate(student, loader, cache.manifest.capture)
    names = ("kl", "cross_entropy", "top1_agreement", "teacher_cross_entropy")
    np.testing.assert_allclose([measured[name] for name in names], totals / count, rtol=2e-4)
    assert measured["perplexity"] == pytest.approx(np.exp(measured["cross_entropy"]))
    assert measured["tokens"] == count
    bins = np.minimum((np.array(confidence) * 15).astype(int), 14)
    gaps = [abs(np.sum(np.array(confidence)[bins == b]) - np.sum(np.array(right)[bins == b])) for b in range(15)]
    assert measured["calibration_error"] == pytest.approx(sum(gaps) / count, rel=1e-5)


def test_model_keeps_its_mode_and_gets_no_gradients(cache, student) -> None:
    student.train()
    evaluate(student, first_samples(cache, 4, 2), cache.manifest.capture)
    assert student.training
    assert all(weight.grad is None for weight in student.parameters())


def test_an_all_false_loss_mask_is_refused(cache, student) -> None:
    cache.samples[0] = {**cache.samples[0], "loss_mask": np.zeros_like(cache.samples[0]["loss_mask"])}
    with pytest.raises(UserError, match="loss_mask is False at every token"):
        evaluate(
            student,
            first_samples(cache, 1, 1),
            cache.manifest.capture,
        )


def test_the_teacher_agrees_with_its_own_cache(cache, teacher_model) -> None:
    measured = evaluate(
        teacher_model,
        first_samples(cache, 24, 4),
        cache.manifest.capture,
    )
    assert measured["kl"] < 1e-6
    assert measured["top1_agreement"] == 1.0
    assert measured["cross_entropy"] == pytest.approx(measured["teacher_cross_entropy"], rel=1e-6)


def test_a_model_folder_over_a_limited_or_held_out_part(real_cache, student_folder) -> None:
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


def test_perplexity_equals_the_one_computed_from_text(tmp_path) -> None:
    """A text through tokenizer and model directly, against a cache of the same text."""
    folder = write_random_teacher(tmp_path / "teacher")
    texts = [f"def f{i}(x): return x + {i}  # user assistant" for i in range(6)]
    (tmp_path / "corpus").mkdir()
    for i, text in enumerate(texts):
        (tmp_path / f"corpus/{i}.txt").write_text(text)
    workspace = Workspace(tmp_path, folder, tmp_path / "corpus")
    job.run(load_config(CacheConfig, str(workspace.cache_config(tmp_path / "cache"))))
    measured = evaluate_folder(str(folder), str(tmp_path / "cache"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_model(folder, key="student", dtype=torch.float32)
    losses = []
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            log_q = model(ids).logits[0].double().log_softmax(-1)
        losses.append(-log_q[:-1].gather(1, ids[0, 1:, None]).squeeze(1))
    assert measured["perplexity"] == pytest.approx(torch.cat(losses).mean().exp().item(), rel=1e-6)
