"""One step of a capture: equal to one sequence at a time, with as many waits for the device whatever their number."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu_check.device_size import DecoderShape
from benchmarks.gpu_check.stand_in_decoder import StandInDecoder, as_vllm, make_decoder
from schemas.cache_config import CaptureConfig
from support.device_tensor import DeviceTensor, on_device
from teacher_cache.engines import step as module
from teacher_cache.engines.step import CapturedSequence, Shares, Step, StepSequence, to_captured
from teacher_cache.engines.transfers import to_device, to_host
from teacher_cache.engines.vllm_worker import CaptureWorkerExtension
from teacher_cache.records import Captured, Request
from teacher_cache.signals.side_taps import taps_of

SHAPE = DecoderShape("step", 3, 32, 48, 4, 2, 8, 301)
CAPTURE = CaptureConfig.model_validate(
    {
        "logits": {"k": 5, "temperatures": [1.0, 2.0]},
        "draws": {"n": 4},
        "final": {},
        "hidden": {"layers": [1, 3], "dtype": "int8", "positions": "all"},
        "attention": {"heads": 2, "keys": 4, "layer": 2, "positions": "all"},
    }
)


def requests(sequences: int, tokens: int = 48) -> list[Request]:
    rng = np.random.default_rng(sequences)
    ids = rng.integers(0, SHAPE.vocabulary, (sequences, tokens // sequences)).astype(np.uint32)
    rows = np.arange(tokens // sequences, dtype=np.int32)
    side = {"final": rows[::3], "hidden": rows[1::2], "attention": rows[::2]}
    return [Request(one, rows[::2], side, seed) for seed, one in enumerate(ids)]


def run_step(decoder: StandInDecoder, worker: CaptureWorkerExtension, asked: list[Request], wrap: Any) -> Any:
    length = len(asked[0].input_ids)
    decoder.set_sequence_tokens(length)
    worker.expect(asked)
    ids = torch.from_numpy(np.concatenate([one.input_ids for one in asked]).astype(np.int64))
    decoder(input_ids=wrap(ids), positions=wrap(torch.arange(len(ids)) % length))
    return worker._capture._captured


@pytest.fixture
def stand_in() -> Any:
    """A decoder and vLLM's worker with hooks on it."""
    with as_vllm(), torch.inference_mode():
        decoder = make_decoder(SHAPE, "cpu", torch.float32)
        worker = CaptureWorkerExtension()
        worker.model_runner = SimpleNamespace(get_model=lambda: decoder)
        worker.install_capture(CAPTURE.model_dump(mode="json"), 16)
        worker.begin_probe()
        decoder(input_ids=torch.arange(8), positions=torch.arange(8))
        worker.end_probe()
        yield decoder, worker


def test_waits_for_the_device_do_not_depend_on_the_number_of_sequences(
    stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads: list[int] = []
    monkeypatch.setattr(
        module, "to_device", lambda array, device: uploads.append(1) or on_device(torch.from_numpy(array))
    )
    counted = []
    for sequences in (2, 2, 12):
        DeviceTensor.waits = DeviceTensor.copies = 0
        uploads.clear()
        captured = run_step(*stand_in, requests(sequences), on_device)
        assert len(captured) == sequences
        attention = sum(len(one.side["attention"]) for one in captured.values())
        assert attention == sequences
        counted.append((DeviceTensor.waits, len(uploads), DeviceTensor.copies - 4 * attention))
    assert counted[1] == counted[2]
    waits, uploads_of_step, _ = counted[1]
    assert waits == 1, "the token ids and positions; the wait at the end is none of a tensor"
    assert uploads_of_step == 2, "indices of rows, and uniform numbers"


def test_what_would_wait_is_counted() -> None:
    tensor = on_device(torch.arange(6.0))
    operations: list[Callable[[torch.Tensor], Any]] = [
        lambda t: t.cpu(),
        lambda t: (t * 2).sum().item(),
        lambda t: t[t > 2],
        lambda t: bool(t[0]),
        lambda t: torch.stack([t, t]).tolist(),
        lambda t: (t == 0).nonzero(),
        lambda t: torch.empty(6).copy_(t),
    ]
    for operation in operations:
        before = DeviceTensor.waits
        operation(tensor)
        assert DeviceTensor.waits == before + 1
    before = DeviceTensor.waits
    torch.cat([tensor[2:4].exp().topk(1).values, tensor.split([2, 4])[1].argsort()])
    to_host([tensor, tensor.int()])
    assert DeviceTensor.waits == before


def captured_by(ranks: list[dict[int, CapturedSequence]], asked: list[Request]) -> list[Captured]:
    taps = taps_of(CAPTURE, SHAPE.layers)
    return [
        to_captured(request, [rank[i] for rank in ranks if i in rank], taps, CAPTURE.logits)
        for i, request in enumerate(asked)
    ]


def assert_equal(found: Captured, wanted: Captured) -> None:
    pairs = [(found.logits, wanted.logits), *((found.side[name], wanted.side[name]) for name in wanted.side)]
    for one, other in pairs:
        for name, value in vars(other).items():
            np.testing.assert_array_equal(getattr(one, name), value, err_msg=f"{type(other).__name__}.{name}")
    np.testing.assert_array_equal(found.entropy, wanted.entropy)


def test_sequences_captured_together_equal_those_captured_alone(stand_in: Any) -> None:
    decoder, worker = stand_in
    asked = requests(4)
    run_step(decoder, worker, asked, lambda tensor: tensor)
    together = captured_by([worker.collect_captured(range(4))], asked)
    for request, wanted in zip(asked, together, strict=True):
        run_step(decoder, worker, [request], lambda tensor: tensor)
        (alone,) = captured_by([worker.collect_captured(range(1))], [request])
        np.testing.assert_array_equal(alone.logits.ids, wanted.logits.ids)
        np.testing.assert_allclose(alone.logits.logprobs, wanted.logits.logprobs, atol=1e-5)
        np.testing.assert_array_equal(alone.side["draws"].positions, wanted.side["draws"].positions)
        np.testing.assert_array_equal(alone.side["attention"].heads, wanted.side["attention"].heads)
        np.testing.assert_allclose(alone.side["attention"].weights, wanted.side["attention"].weights, atol=1e-5)
        np.testing.assert_array_equal(alone.side["hidden"].positions, wanted.side["hidden"].positions)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("chunk_rows", [1, 5, 64])
def test_ranks_that_share_the_rows_capture_the_same_bytes(world: int, chunk_rows: int) -> None:
    asked = [Request(np.arange(n, dtype=np.uint32), np.arange(0, n, 2, dtype=np.int32), {}, n) for n in (9, 1, 4)]
    capture = CaptureConfig.model_validate({"logits": {"k": 5}, "draws": {"n": 4}})
    taps, logits_NV = taps_of(capture, 1), torch.randn(14, 50, generator=torch.Generator().manual_seed(0))
    starts = np.cumsum([0, *(len(one.input_ids) for one in asked)]).tolist()

    def captured(world: int) -> list[Captured]:
        ranks = []
        for rank in range(world):
            sequences = [StepSequence(i, one, starts[i], starts[i + 1]) for i, one in enumerate(asked)]
            step = Step(sequences, taps, torch.device("cpu"))
            step.logits(torch.arange(14), lambda rows: logits_NV[rows], capture.logits, chunk_rows, Shares(rank, world))
            ranks.append({number: one.detached() for number, one in step.finish().items()})
        return [to_captured(one, [rank[i] for rank in ranks], taps, capture.logits) for i, one in enumerate(asked)]

    for found, wanted in zip(captured(world), captured(1), strict=True):
        assert_equal(found, wanted)


@pytest.mark.parametrize(("n_rows", "world"), [(0, 3), (1, 3), (2, 3), (10, 3), (512, 8)])
def test_shares_are_contiguous_and_nearly_equal(n_rows: int, world: int) -> None:
    shares = [Shares(rank, world).of(n_rows) for rank in range(world)]
    assert [row for share in shares for row in range(n_rows)[share]] == list(range(n_rows))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_missing_rows_are_noticed() -> None:
    request = Request(np.arange(3, dtype=np.uint32), np.arange(3, dtype=np.int32))
    step = Step([StepSequence(0, request, 0, 3)], {}, torch.device("cpu"))
    step.logits(torch.arange(3), lambda rows: torch.randn(len(rows), 70), CAPTURE.logits, 2, Shares(0, 2))
    with pytest.raises(RuntimeError, match="3 tokens was not captured in one step"):
        to_captured(request, [step.finish()[0]], {}, CAPTURE.logits)
    with pytest.raises(RuntimeError, match="3 tokens was not captured in one step"):
        to_captured(request, [], {}, CAPTURE.logits)


def test_host_copies_are_independent_of_their_source() -> None:
    source = torch.arange(6).reshape(2, 3)
    (copy,) = to_host([source[:, 1:]])
    source.zero_()
    assert copy.tolist() == [[1, 2], [4, 5]]
    assert to_host([]) == []
    assert to_device(np.arange(3), torch.device("cpu")).tolist() == [0, 1, 2]
