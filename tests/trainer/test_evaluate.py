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
from trainer.losses.target_form import stored_target
from trainer.losses.teacher_rows import teacher_rows
from trainer.losses.tla import tla_
from trainer.student.build import load_model
from trainer.student.forward import masked_hidden, output_head


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


def test_a_cache_of_the_same_tokenizer_gives_plain_means_to_the_last_bit(cache, student) -> None:
    capture, totals, tokens = cache.manifest.capture, torch.zeros(4, dtype=torch.float64), 0
    student.eval()
    for batch in first_samples(cache, 9, 4):
        rows = teacher_rows(batch)
        with torch.no_grad():
            z = output_head(student).logits(masked_hidden(student, batch))
        log_z, best = torch.logsumexp(z, dim=-1), z.argmax(dim=-1)
        cross_entropy = log_z - z.gather(1, rows.next_ids_N[:, None]).squeeze(1)
        kl, _ = tla_(z, stored_target(rows, capture, 1.0, z.shape[1]), 1.0)
        each = (kl, cross_entropy, best == rows.ids_NK[:, 0], -rows.next_logprob_N)
        totals += torch.stack([values.sum(dtype=torch.float64) for values in each])
        tokens += len(z)
    measured = evaluate(student, first_samples(cache, 9, 4), capture)
    names = ("kl", "cross_entropy", "top1_agreement", "teacher_cross_entropy")
    assert [measured[name] for name in names] == (totals / tokens).tolist()
    assert {*measured} == {*names, "perplexity", "calibration_error", "tokens"}


def test_rows_without_a_teacher_count_for_the_text_only(cache, student) -> None:
    """Such rows, among those that count, as a student with another tokenizer has them."""
    capture, batches = cache.manifest.capture, list(first_samples(cache, 9, 4))
    everything = evaluate(student, batches, capture)
    taught = []
    for number, batch in enumerate(batches):
        lacking = batch["loss_mask"] & (torch.arange(batch["loss_mask"].shape[1]) % 3 == number)
        taught.append({**batch, "loss_mask": batch["loss_mask"] & ~lacking})
        batch["logprobs"][lacking] = -torch.inf
        batch["next_logprob"][lacking] = torch.nan
    measured, wanted = evaluate(student, batches, capture), evaluate(student, taught, capture)
    assert measured["tokens_with_teacher"] == wanted["tokens"] < measured["tokens"]
    for name in ("kl", "top1_agreement", "teacher_cross_entropy"):
        assert measured[name] == pytest.approx(wanted[name], rel=1e-5)
    assert measured["kl"] != pytest.approx(everything["kl"], rel=1e-3)
    for name in ("cross_entropy", "perplexity", "calibration_error", "tokens"):
        assert measured[name] == everything[name]


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


def test_perplexity_and_bits_per_byte_equal_those_computed_from_text(tmp_path) -> None:
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
    first = [tokenizer.decode(tokenizer(text)["input_ids"][0]) for text in texts]  # is not predicted
    predicted = len("".join(texts)) - len("".join(first))
    assert measured["bits_per_byte"] == pytest.approx(torch.cat(losses).sum().item() / np.log(2) / predicted, rel=1e-6)
