"""A cache whose rows stand at wrong tokens is refused in the first batch; a sound one never is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cache_config import CacheConfig, CodecConfig, LogitsCapture
from schemas.errors import UserError
from schemas.load import validate
from schemas.train_config import TrainConfig
from support.displaced import DISPLACED, shifted
from support.models import write_random_teacher, write_text_corpus
from support.synthetic import random_shards, write_cache
from support.workspace import cache_tree
from teacher_cache import job
from teacher_cache.signals.draws import capture as draws
from teacher_cache.signals.draws.capture import to_draws_sample
from teacher_cache.signals.final import capture as final
from teacher_cache.signals.final import rebuilding
from teacher_cache.signals.hidden.capture import to_hidden_sample
from tools.checking.verify import verify
from trainer.data import alignment
from trainer.data.alignment import CheckedReader
from trainer.distiller import distill

LENGTHS = [[16] * 6, [16] * 6]
VOCABULARY = 61


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("on_corrupt", ["stop", "skip"])
@pytest.mark.parametrize("kind", DISPLACED)
def test_training_stops_in_its_first_batch_and_names_verify(
    make_config: Callable[..., TrainConfig], tmp_path: Path, kind: str, on_corrupt: str, packing: bool
) -> None:
    url = str(tmp_path / "cache")
    write_cache(url, DISPLACED[kind](random_shards(LENGTHS, VOCABULARY, seed=1)), VOCABULARY)
    data = {"cache": url, "on_corrupt": on_corrupt, "packing": packing, "pack_tokens": 64}
    with pytest.raises(UserError, match=r"shard-00000\d\.logits\.tar: sample \w+.*`cache-tools verify .*cache`"):
        distill(make_config(data=data))
    assert not list((tmp_path / "out").glob("checkpoint-*"))
    assert (tmp_path / "out/metrics.jsonl").read_text() == ""


FORMS = {
    "draws": {"logits": {"k": 16}, "draws": {"n": 16, "temperatures": [1.0]}},
    "draws of the tail": {"logits": {"k": 16}, "draws": {"n": 16, "temperatures": [1.0], "region": "tail"}},
    "final": {"logits": {"k": 16}, "final": {}},
}


@pytest.mark.parametrize("form", FORMS)
def test_training_stops_if_other_signals_are_shifted(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws and final hidden states of one row before, beside logits that are right; ``verify`` says so as well."""
    teacher, corpus = write_random_teacher(tmp_path / "teacher"), write_text_corpus(tmp_path / "corpus")

    def cached(name: str) -> TrainConfig:
        tree = cache_tree(teacher, corpus, tmp_path / name, capture=FORMS[form])
        tree["engine"]["self_check"] = "off"  # which would not let the wrong one begin
        job.run(validate(CacheConfig, tree, "test"))
        train = {
            "data": {"cache": str(tmp_path / name)},
            "student": {"teacher": str(teacher), "from_layers": [0]},
            "loop": {"max_steps": 1, "micro_batch_size": 2},
            "output": str(tmp_path / f"{name}-student"),
        }
        return validate(TrainConfig, train, "test")

    assert distill(cached("right"))["steps"] == 1
    assert verify(str(tmp_path / "right")).problems == []
    monkeypatch.setattr(draws, "to_draws_sample", lambda *given: rolled(to_draws_sample(*given)))
    monkeypatch.setattr(final, "to_hidden_sample", lambda *given: rolled(to_hidden_sample(*given)))
    monkeypatch.setattr(rebuilding, "check_rebuilt", lambda *_: None)
    config = cached("wrong")
    signal = form.partition(" ")[0]
    with pytest.raises(UserError, match=rf"{signal}\.tar: sample \w+: .*; `cache-tools verify .*wrong` explains"):
        distill(config)
    problems = verify(str(tmp_path / "wrong")).problems
    assert problems
    assert all(f".{signal}.tar: sample" in problem for problem in problems)
    for path in (tmp_path / "wrong").glob("*.logits.tar"):
        path.unlink()
    if form == "final":  # there is nothing to compare with
        assert distill(config)["steps"] == 1


def rolled(sample: Any) -> Any:
    return replace(sample, **{n: np.roll(v, 1, axis=0) for n, v in vars(sample).items() if n != "positions"})


def test_later_reads_are_checked_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One shard of two is wrong, and is not among the first reads."""
    monkeypatch.setattr(alignment, "LATER", 8)
    shards = random_shards(LENGTHS, VOCABULARY, seed=1)
    write_cache(str(tmp_path), [shards[0], *shifted(shards[1:])], VOCABULARY)
    reader = CheckedReader(str(tmp_path))
    for _ in range(4):
        reader.read_rows([[0], [1]])
    for _ in range(4):
        reader.read_rows([[6], [7]])
    with pytest.raises(UserError, match=r"shard-000001\.logits\.tar: sample "):
        reader.read_rows([[6], [7]])
    reader.close()


CODECS = st.builds(
    CodecConfig,
    logprobs=st.sampled_from(["steps", "bfloat16", "float16", "float32"]),
    logprob_steps_per_nat=st.sampled_from([1, 16, 1024]),
    scalar_steps_per_nat=st.sampled_from([16, 1024]),
)
CAPTURES = st.builds(
    LogitsCapture,
    policy=st.sampled_from(["top_k", "nucleus"]),
    k=st.sampled_from([1, 2, 8, VOCABULARY]),
    mass=st.sampled_from([0.3, 0.95, 1.0]),
    temperatures=st.sampled_from([[1.0], [1.0, 3.0], [0.25, 1.0, 500.0]]),
    positions=st.sampled_from(["all", "loss_mask"]),
)


@settings(max_examples=60, deadline=None)
@given(codec=CODECS, capture=CAPTURES, seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 0.1, 1.0, 30.0, 1e4]))
def test_sound_caches_never_alarm(
    tmp_path_factory: pytest.TempPathFactory, codec: CodecConfig, capture: LogitsCapture, seed: int, scale: float
) -> None:
    """Whatever codec, policy, K, temperatures and teacher: one that knows nothing, one that is sure of everything."""
    folder = str(tmp_path_factory.mktemp("sound"))
    shards = random_shards([[9, 2, 14]], VOCABULARY, capture, seed, counting=0.7, scale=scale)
    write_cache(folder, shards, VOCABULARY, capture, codec)
    reader = CheckedReader(folder)
    reader.read_rows([[0, 1], [2]])
    reader.close()
