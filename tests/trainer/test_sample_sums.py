"""Sums by sample: each sample's are those of the sample alone, and together they are the sums over all rows."""

import math

import pytest
import torch

from trainer.evaluate import evaluate_folder
from trainer.measures import MEANS, SUMS
from trainer.sample_sums import SampleSums


@pytest.fixture(scope="module")
def by_sample(real_cache, student_folder) -> tuple[dict, SampleSums]:
    by_sample = SampleSums(SUMS)
    return evaluate_folder(str(student_folder), str(real_cache), limit=7, batch_size=3, by_sample=by_sample), by_sample


def test_they_change_no_bit_of_the_means(by_sample, real_cache, student_folder) -> None:
    measured, _ = by_sample
    assert measured == evaluate_folder(str(student_folder), str(real_cache), limit=7, batch_size=3)


def test_they_add_up_to_the_sums_over_all_rows(by_sample) -> None:
    measured, samples = by_sample
    sums = samples.sums()
    assert sums["tokens"].sum() == measured["tokens"]
    for name, rows in MEANS.items():
        assert (sums[name].sum() / sums[rows].sum()).item() == pytest.approx(measured[name], rel=1e-12)
    bits = sums["cross_entropy"].sum().item() / math.log(2) / sums["bytes"].sum().item()
    assert bits == pytest.approx(measured["bits_per_byte"], rel=1e-12)


def test_each_is_that_of_the_sample_under_its_key(by_sample, real_cache, student_folder) -> None:
    """Samples are sorted by length within a batch; here the cache grows by one at a time."""
    _, samples = by_sample
    found = dict(zip(samples.keys, samples.sums()["cross_entropy"].tolist(), strict=True))
    assert len(found) == 7
    before, keys = 0.0, set[str]()
    for count in (1, 2, 3):
        fewer = SampleSums(SUMS)
        evaluate_folder(str(student_folder), str(real_cache), limit=count, batch_size=1, by_sample=fewer)
        total = fewer.sums()["cross_entropy"].sum().item()
        (added,) = {*fewer.keys} - keys
        assert found[added] == pytest.approx(total - before, rel=1e-4)
        before, keys = total, {*fewer.keys}


def test_rows_go_to_their_samples_chunk_by_chunk() -> None:
    """A second sample without rows, a third one that begins within a chunk."""
    samples = SampleSums(["a", "b"])
    samples.begin(torch.tensor([[True, True, False], [False, False, False], [True, True, True]]))
    value = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    for chunk in (slice(0, 3), slice(3, 5)):
        samples.add({"a": value[chunk], "b": value[chunk] > 2, "other": value}, chunk)
    samples.begin(torch.tensor([[True]]))
    samples.add({"a": torch.tensor([0.5]), "b": torch.tensor([False])}, slice(0, 1))
    assert {name: sums.tolist() for name, sums in samples.sums().items()} == {
        "a": [3.0, 0.0, 28.0, 0.5],
        "b": [0.0, 0.0, 3.0, 0.0],
    }
