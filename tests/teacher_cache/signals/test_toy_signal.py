"""A signal is added with one folder and one line of the table; no other module names it."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic.fields import FieldInfo
from transformers import AutoModelForCausalLM

from schemas.cache_config import CacheConfig, CaptureConfig, captured_signals
from schemas.load import validate
from schemas.manifest import Manifest
from support.forge import change_payload
from support.models import write_random_teacher, write_text_corpus
from support.toy_signal import NormsCapture, NormsSignal
from support.toy_signal.codec import NormsCodec
from support.workspace import cache_tree
from teacher_cache import job
from teacher_cache.api import open_cache
from teacher_cache.shards.marks import read_manifest
from teacher_cache.shards.reader import CacheReader
from teacher_cache.shards.storage import Storage
from teacher_cache.signals.side_table import SIDE_SIGNALS
from tools.checking.verify import verify
from tools.finding.words import capture_in_words
from tools.looking.inspect import sample_rows
from trainer.data.batches import to_tensors

CAPTURE = {"logits": {"k": 8}, "hidden": {"layers": [2]}, "norms": {"layer": 1, "positions": {"every": 2}}}
ROOT, PACKAGES = Path(__file__).parents[3], ("schemas", "teacher_cache", "trainer", "tools", "benchmarks")


@pytest.fixture(scope="module")
def contract() -> Iterator[None]:
    """The contract with a field for the signal's settings, as in a release with the signal."""

    def rebuild() -> None:
        for model in (CaptureConfig, CacheConfig, Manifest):
            model.model_rebuild(force=True)

    field = FieldInfo.from_annotated_attribute(NormsCapture | None, None)  # type: ignore[arg-type]
    CaptureConfig.__pydantic_fields__["norms"] = field
    rebuild()
    yield
    del CaptureConfig.__pydantic_fields__["norms"]
    rebuild()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def url(contract: None, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cache with the signal, from a real run; the table has the extra line during the test."""
    folder = tmp_path_factory.mktemp("run")
    corpus = write_text_corpus(folder / "corpus", documents=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIDE_SIGNALS, "norms", NormsSignal())
        tree = cache_tree(teacher, corpus, folder / "cache", capture=CAPTURE)
        assert job.run(validate(CacheConfig, tree, "test")).complete
        yield str(folder / "cache")


def norms_of(model: torch.nn.Module, input_ids: np.ndarray) -> np.ndarray:
    """Norms [S, 2] of all tokens from a plain forward pass."""
    with torch.inference_mode():
        output = model.model(torch.from_numpy(input_ids.astype(np.int64))[None], output_hidden_states=True)
    return torch.stack([output.hidden_states[1][0], output.last_hidden_state[0]], dim=1).norm(dim=2).numpy()


def test_values_are_those_of_a_plain_forward_pass(url: str, teacher: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    reader = CacheReader(url, ("tokens", "norms"))
    assert len(reader) > 3
    for position in range(len(reader)):
        tokens, sample = reader.read_tokens(position), reader.read(position, "norms")
        assert sample.positions.tolist() == list(range(0, len(tokens.input_ids), 2))
        np.testing.assert_allclose(sample.norms, norms_of(model, tokens.input_ids)[sample.positions], rtol=1e-5)


def test_batches_hold_what_the_samples_do(url: str) -> None:
    reader, cache = CacheReader(url, ("tokens", "norms")), open_cache(url)
    samples = [reader.read(position, "norms") for position in range(3)]
    wanted = np.concatenate([sample.norms for sample in samples])
    rows = reader.read_rows([[0, 1], [2]])
    batch = to_tensors(rows, packed=True)
    shift, n_last = len(reader.read_tokens(0).input_ids), len(samples[2].norms)
    assert batch["norms_batch_row"].tolist() == [0] * (len(wanted) - n_last) + [1] * n_last
    columns = [*samples[0].positions, *(samples[1].positions + shift), *samples[2].positions]
    assert batch["norms_column"].tolist() == columns
    assert np.array_equal(batch["norms_norms"], wanted)
    assert np.array_equal(cache.batch([0, 1, 2])["norms"], wanted)
    assert np.array_equal(cache[0].read("norms").norms, samples[0].norms)
    assert np.array_equal(cache[1].to_torch()["norms_positions"], samples[1].positions)


def test_tools_show_it(url: str, tmp_path: Path) -> None:
    assert verify(url).problems == []
    assert capture_in_words(read_manifest(Storage(url)))["norms"] == "of layer 1 and of the final state"
    reader = CacheReader(url, ("tokens", "norms"))
    sample = reader.read(0, "norms")
    shown = sample_rows(url, reader.key(0), limit=3)
    assert [row["norms"] for row in shown] == [sample.norms[0].tolist(), None, sample.norms[1].tolist()]

    def forged(payload: bytes) -> bytes:
        codec, n = NormsCodec(reader.manifest.codec), len(reader.read_tokens(1).input_ids)
        sample = codec.decode(payload, n)
        return codec.encode(replace(sample, norms=-sample.norms))

    key, n = reader.key(1), 2 * len(reader.read(1, "norms").norms)
    copy = str(shutil.copytree(url, tmp_path / "copy"))
    change_payload(copy, "norms", 1, forged)
    assert verify(copy).problems == [f"shard-000000.norms.tar: sample {key}: {n} norms are not positive"]


def test_no_other_module_names_it() -> None:
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(modules) > 200
    assert [path for path in modules if re.search(r"""["']norms["']|NormsCapture""", path.read_text())] == []


def test_the_table_holds_the_signals_of_the_contract() -> None:
    assert ["logits", *SIDE_SIGNALS] == captured_signals()
