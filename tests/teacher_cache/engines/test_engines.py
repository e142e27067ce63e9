"""Both engines on one tiny random teacher. vLLM takes half a minute to load, so all tests share an engine."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from schemas.cache_config import CacheConfig, DrawsCapture, FinalCapture, HiddenCapture
from schemas.errors import UserError
from schemas.load import validate
from support.models import VOCAB_SIZE, write_random_teacher
from teacher_cache.engines import Engine, open_engine
from teacher_cache.engines.kv_cache import kv_cache_memory
from teacher_cache.engines.vllm import VllmEngine
from teacher_cache.records import LogitsSample, Request
from teacher_cache.signals.draws.capture import draw, uniforms
from teacher_cache.signals.hidden.capture import to_floats
from teacher_cache.teacher import load_model_config

TEMPERATURES = [1.0, 2.0, 3.0]
K = 20
LAYERS = [3, 1]  # stored in rising order; 3 is the last
HEADS, KEYS = 2, 8
DRAWS = {"n": 9, "temperatures": [1.0, 3.0]}


def make_config(teacher: Path, kind: str, **teacher_changes: object) -> CacheConfig:
    tree = {
        "teacher": {"path": str(teacher), "dtype": "float32", **teacher_changes},
        "engine": {
            "kind": kind,
            "device": "cpu",
            "max_batch_tokens": 256,
            "head_chunk_rows": 50,
        },
        "corpus": {"sources": [{"path": "unused", "format": "text"}], "max_tokens": 100},
        "capture": {
            "logits": {"k": K, "temperatures": TEMPERATURES},
            "hidden": {"layers": LAYERS},
            "attention": {"heads": HEADS, "keys": KEYS},
            "draws": DRAWS,
            "final": {"dtype": "float16"},
        },
        "output": {"path": "unused"},
    }
    return validate(CacheConfig, tree, "test")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its maximum length is that of the longest test sequence."""
    folder = tmp_path_factory.mktemp("teacher")
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return write_random_teacher(folder, num_hidden_layers=3, max_position_embeddings=100, **heads)


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def engine(request: pytest.FixtureRequest, teacher: Path) -> Iterator[Engine]:
    with open_engine(make_config(teacher, request.param)) as engine:
        yield engine


@pytest.fixture(scope="module")
def sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = [100, 1, 2, 37, 64, 100, 3, 99, 50, 51]
    return [rng.integers(0, VOCAB_SIZE, length).astype(np.uint32) for length in lengths]


@pytest.fixture(scope="module")
def reference(teacher: Path, sequences: list[np.ndarray]) -> list[np.ndarray]:
    """Raw logits, float64 [S, V], of each sequence, from one forward pass per sequence."""
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    with torch.inference_mode():
        return [model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].double().numpy() for ids in sequences]


def scored(engine: Engine, sequences: list[np.ndarray]) -> list[LogitsSample]:
    """Logits at all positions of each sequence."""
    requests = [Request(ids, np.arange(len(ids), dtype=np.int32)) for ids in sequences]
    return [captured.logits for captured in engine.score(requests)]


def check(sample: LogitsSample, logits_SV: np.ndarray, ids: np.ndarray) -> None:
    assert sample.num_tokens == len(ids)
    assert sample.positions.tolist() == list(range(len(ids)))
    log_z_S = np.log(np.exp(logits_SV).sum(axis=1))
    logprobs_SV = logits_SV - log_z_S[:, None]
    best_SK = np.sort(logprobs_SV, axis=1)[:, ::-1][:, :K]
    assert np.abs(sample.logprobs - best_SK).max() < 1e-4
    assert np.abs(sample.logprobs - np.take_along_axis(logprobs_SV, sample.ids, axis=1)).max() < 1e-4
    assert (sample.counts == K).all()
    assert np.abs(sample.next_logprob[:-1] - logprobs_SV[np.arange(len(ids) - 1), ids[1:]]).max(initial=0) < 1e-4
    assert np.isnan(sample.next_logprob[-1])
    for column, temperature in enumerate(TEMPERATURES):
        expected = np.log(np.exp(logprobs_SV / temperature).sum(axis=1))
        assert np.abs(sample.log_partition[:, column] - expected).max() < 1e-4


def test_values_equal_a_plain_forward_pass(
    engine: Engine, sequences: list[np.ndarray], reference: list[np.ndarray]
) -> None:
    for sample, logits, ids in zip(scored(engine, sequences), reference, sequences, strict=True):
        check(sample, logits, ids)


def test_entropies_are_of_the_whole_distribution(
    engine: Engine, sequences: list[np.ndarray], reference: list[np.ndarray]
) -> None:
    requests = [Request(ids, np.arange(0, len(ids), 2, dtype=np.int32)) for ids in sequences]
    for captured, logits_SV in zip(engine.score(requests), reference, strict=True):
        logprobs_PV = (logits_SV - np.log(np.exp(logits_SV).sum(axis=1))[:, None])[::2]
        assert captured.entropy is not None
        np.testing.assert_allclose(captured.entropy, -(np.exp(logprobs_PV) * logprobs_PV).sum(axis=1), atol=1e-4)


def signal_requests(sequences: list[np.ndarray]) -> list[Request]:
    """Different positions for every sequence and signal: possibly none, but at least one of the logits."""
    rng = np.random.default_rng(1)

    def rows(length: int, least: int) -> np.ndarray:
        return np.sort(rng.choice(length, rng.integers(least, length + 1), replace=False)).astype(np.int32)

    def side(length: int) -> dict[str, np.ndarray]:
        return {name: rows(length, 0) for name in ("hidden", "attention", "final")}

    return [Request(ids, rows(len(ids), 1), side(len(ids)), seed) for seed, ids in enumerate(sequences)]


def test_logits_are_captured_at_the_requested_positions(engine: Engine, sequences: list[np.ndarray]) -> None:
    """Values equal those of the same positions when all are requested."""
    requests = signal_requests(sequences)
    assert any(request.logits_positions[-1] == len(request.input_ids) - 1 for request in requests)
    same = total = 0
    for captured, request, whole in zip(engine.score(requests), requests, scored(engine, sequences), strict=True):
        sample, rows = captured.logits, request.logits_positions
        assert sample.num_tokens == whole.num_tokens == len(request.input_ids)
        assert np.array_equal(sample.positions, rows)
        assert np.array_equal(sample.counts, whole.counts[rows])
        for name in ("logprobs", "next_logprob", "log_partition"):
            np.testing.assert_allclose(getattr(sample, name), getattr(whole, name)[rows], atol=1e-4, err_msg=name)
        same, total = same + (sample.ids == whole.ids[rows]).sum(), total + sample.ids.size
    assert same > 0.999 * total, "but for ties"
    assert total < 0.9 * K * sum(map(len, sequences)), "all positions were requested"


def test_hidden_states_are_the_residual_stream_after_the_layer(
    engine: Engine, teacher: Path, sequences: list[np.ndarray]
) -> None:
    """transformers' hidden_states[n] for n below the last; the last layer is compared after the final norm."""
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    capture = HiddenCapture(layers=LAYERS)
    requests = signal_requests(sequences)
    for captured, request in zip(engine.score(requests), requests, strict=True):
        sample = captured.side["hidden"]
        assert np.array_equal(sample.positions, request.positions("hidden"))
        with torch.inference_mode():
            output = model.model(torch.from_numpy(request.input_ids.astype(np.int64))[None], output_hidden_states=True)
            stored_PCD = to_floats(sample, capture)
            normed_PD = model.model.norm(stored_PCD[:, 1])
        assert stored_PCD.shape == (len(request.positions("hidden")), 2, 64)
        for found_PD, layer in ((stored_PCD[:, 0], 1), (normed_PD, 3)):
            wanted_PD = output.hidden_states[layer][0][request.positions("hidden")]
            error_P = (found_PD - wanted_PD).norm(dim=1) / wanted_PD.norm(dim=1)
            assert error_P.max() < 0.01 if len(error_P) else True


def test_attention_rows_equal_eager_attention(engine: Engine, teacher: Path, sequences: list[np.ndarray]) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32, attn_implementation="eager")
    requests = signal_requests(sequences)
    for captured, request in zip(engine.score(requests), requests, strict=True):
        sample, rows = captured.side["attention"], request.positions("attention")
        assert np.array_equal(sample.positions, rows)
        with torch.inference_mode():
            output = model(torch.from_numpy(request.input_ids.astype(np.int64))[None], output_attentions=True)
        weights_HPS = output.attentions[2][0][:, rows].double().numpy()
        entropy_H = -(weights_HPS * np.log(np.maximum(weights_HPS, 1e-30))).sum(axis=2).mean(axis=1) if len(rows) else 0
        if len(rows):
            assert sample.heads.tolist() == np.argsort(entropy_H, kind="stable")[:HEADS].tolist()
        largest_PHM = -np.sort(-weights_HPS[sample.heads].transpose(1, 0, 2), axis=2)[:, :, :KEYS]
        assert sample.weights.shape == (len(rows), HEADS, KEYS)
        n = largest_PHM.shape[2]
        assert np.abs(sample.weights[:, :, :n] - largest_PHM).max(initial=0) < 1e-4
        assert not sample.weights[:, :, n:].any()
        at_keys = np.take_along_axis(weights_HPS[sample.heads].transpose(1, 0, 2), sample.keys.astype(np.int64), axis=2)
        stored = sample.weights > 0
        assert np.abs(at_keys - sample.weights)[stored].max(initial=0) < 1e-4


def test_draws_equal_those_of_a_plain_forward_pass(
    engine: Engine, sequences: list[np.ndarray], reference: list[np.ndarray]
) -> None:
    capture = DrawsCapture.model_validate(DRAWS)
    requests = signal_requests(sequences)
    same, total = 0, 0
    for captured, request, logits_SV in zip(engine.score(requests), requests, reference, strict=True):
        sample, rows = captured.side["draws"], request.logits_positions
        assert np.array_equal(sample.positions, rows)
        logits_PV = torch.from_numpy(logits_SV[rows])
        head_PK = logits_PV.topk(K).indices
        wanted = draw(logits_PV, head_PK, torch.from_numpy(uniforms(request, capture)), capture.temperatures)
        assert sample.ids.shape == (len(rows), 2, 9)
        assert not (sample.ids[..., None] == head_PK.numpy()[:, None, None]).any(), "only the tail is drawn from"
        assert np.abs(sample.entropy - wanted.entropy_NT.numpy()).max(initial=0) < 1e-4
        same, total = same + (sample.ids == wanted.ids_NTM.numpy()).sum(), total + sample.ids.size
    assert same > 0.999 * total, "but for draws at the very edge between two tokens"


def test_final_hidden_states_are_the_input_of_the_head(
    engine: Engine, teacher: Path, sequences: list[np.ndarray], reference: list[np.ndarray]
) -> None:
    head = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).lm_head.weight.detach()
    requests = signal_requests(sequences)
    for captured, request, logits_SV in zip(engine.score(requests), requests, reference, strict=True):
        final, rows = captured.side["final"], request.positions("final")
        assert np.array_equal(final.positions, rows)
        rebuilt_PV = to_floats(final, FinalCapture(dtype="float16"))[:, 0] @ head.T
        assert np.abs(rebuilt_PV.numpy() - logits_SV[rows]).max(initial=0) < 0.02


def test_order_and_repeats_do_not_matter(
    engine: Engine, sequences: list[np.ndarray], reference: list[np.ndarray]
) -> None:
    order = [3, 0, 3, 8, 1, 3]
    for sample, position in zip(scored(engine, [sequences[i] for i in order]), order, strict=True):
        check(sample, reference[position], sequences[position])


def test_scoring_again_gives_identical_values(engine: Engine, sequences: list[np.ndarray]) -> None:
    for one, other in zip(scored(engine, sequences), scored(engine, sequences), strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.logprobs, other.logprobs)
        assert np.array_equal(one.log_partition, other.log_partition)


def calls_of(sequences: list[np.ndarray], size: int) -> list[list[Request]]:
    requests = [Request(ids, np.arange(len(ids), dtype=np.int32)) for ids in sequences]
    return [requests[first : first + size] for first in range(0, len(requests), size)]


def test_calls_in_flight_give_each_call_its_own_results(
    engine: Engine, sequences: list[np.ndarray], reference: list[np.ndarray]
) -> None:
    """Also where a sequence is in several calls, and where the last calls are not taken."""
    twice = [*range(len(sequences)), *range(len(sequences))]
    calls = calls_of([sequences[i] for i in twice], 3)
    found = list(engine.score_calls(calls))
    assert [len(captured) for captured in found] == [len(call) for call in calls]
    for captured, position in zip((one for call in found for one in call), twice, strict=True):
        check(captured.logits, reference[position], sequences[position])
    for one, other in zip(found, engine.score_calls(calls), strict=True):
        assert all(np.array_equal(a.logits.logprobs, b.logits.logprobs) for a, b in zip(one, other, strict=True))
    with closing(engine.score_calls(calls)) as some:
        next(some)
    for sample, logits, ids in zip(scored(engine, sequences), reference, sequences, strict=True):
        check(sample, logits, ids)


def test_vllm_is_configured_for_prefill(engine: Engine, teacher: Path) -> None:
    if not isinstance(engine, VllmEngine):
        pytest.skip("settings of vLLM")
    settings = engine._llm.llm_engine.vllm_config
    config = make_config(teacher, "vllm")
    assert settings.scheduler_config.max_num_seqs == 256, "1,024, but not more than the tokens of a step"
    assert settings.cache_config.kv_cache_memory_bytes == kv_cache_memory(
        config, load_model_config(config.teacher), 256, on_cpu=True
    )
    assert os.environ["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_vllm_fills_its_steps_from_two_calls(engine: Engine) -> None:
    """Five calls of 5 × 30 tokens: alone one step each; steps of 256 tokens hold eight sequences."""
    if not isinstance(engine, VllmEngine):
        pytest.skip("transformers scores one call after the other")
    rng = np.random.default_rng(2)
    calls = calls_of([rng.integers(0, VOCAB_SIZE, 30).astype(np.uint32) for _ in range(25)], 5)
    taken, steps = 0, 0
    step = engine._llm.llm_engine.step

    def counted() -> Any:
        nonlocal steps
        steps += 1
        return step()

    def given() -> Iterator[list[Request]]:
        nonlocal taken
        for call in calls:
            taken += 1
            yield call

    with mock.patch.object(engine._llm.llm_engine, "step", counted):
        scored = engine.score_calls(given())
        next(scored)
        assert taken == 3, "one call is scored, one running and one read"
        assert len(list(scored)) == 4
    assert steps == 4


def test_weights_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    folder = write_random_teacher(tmp_path / "teacher")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"teacher\.path: .*cannot load the model"):
        open_engine(make_config(folder, "transformers"))


def test_sequences_longer_than_the_teacher_reads_are_refused(teacher: Path) -> None:
    config = make_config(teacher, "vllm")
    corpus = config.corpus.model_copy(update={"max_tokens": 101})
    with pytest.raises(UserError, match=r"corpus\.max_tokens: 101: the teacher supports at most 100 tokens"):
        open_engine(config.model_copy(update={"corpus": corpus}))
