"""Part 3: the capture hooks of the vLLM engine over a stand-in decoder: speed, and waits of the host for the device."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check.device_clock import cost_of, synchronisations
from benchmarks.gpu_check.device_size import DecoderShape, DeviceSize
from benchmarks.gpu_check.reporting import Report
from benchmarks.gpu_check.stand_in_decoder import StandInDecoder, as_vllm, make_decoder
from benchmarks.support.results import Row, at_least, at_most
from schemas.cache_config import CaptureConfig
from schemas.errors import UserError
from schemas.load import validate
from teacher_cache.engines.vllm_worker import CaptureWorkerExtension, Refusal
from teacher_cache.records import Request, TokenSample
from teacher_cache.signals.select_positions import to_request

CAPTURES: dict[str, dict[str, Any]] = {
    "logits": {"logits": {"k": 64}, "draws": None},
    "logits and draws (the default)": {},
    "all signals": {"final": {}, "hidden": {"positions": {"every": 8}}, "attention": {"positions": {"every": 8}}},
}
BARS = {"logits": 0.90, "all signals": 0.75}
PROBE_TOKENS = 8
MAX_PEAK_SHARE = 0.25  # of the device's memory, beyond model and step


class StandInWorker(CaptureWorkerExtension):
    """vLLM's worker, as far as the capture needs one."""

    def __init__(self, decoder: StandInDecoder) -> None:
        self.model_runner = SimpleNamespace(get_model=lambda: decoder)


def measure(size: DeviceSize, report: Report) -> None:
    """Each shape of decoder, with each set of signals."""
    with as_vllm(), torch.inference_mode():
        for shape in size.decoders:
            if size.device == "cuda" and 2 * shape.parameters > 0.8 * torch.cuda.mem_get_info()[0]:
                report.skip(f"{shape.name} decoder", f"its weights take {2 * shape.parameters / 2**30:.0f} GiB")
                continue
            _measure(size, shape, report)
            if size.device == "cuda":
                torch.cuda.empty_cache()
    if size.device != "cuda":
        report.skip("waits of the host for the device", "there are none on a CPU; a test counts what would be one")


def _measure(size: DeviceSize, shape: DecoderShape, report: Report) -> None:
    decoder = make_decoder(shape, size.device, getattr(torch, size.decoder_dtype))
    step = Steps(decoder, shape, size)
    plain = cost_of(step.plain, size.device, size.repetitions)
    report.add(Row(f"{shape.name}: plain prefill", size.step_tokens / plain.seconds, "tok/s"))
    for name, capture in CAPTURES.items():
        step.install(capture)
        captured = cost_of(step.captured, size.device, size.repetitions)
        ratio = plain.seconds / captured.seconds
        what = f"{shape.name}: captured ÷ plain prefill, {name}"
        bar = BARS.get(name) if shape.barred else None
        report.add(Row(what, ratio, "×") if bar is None else at_least(what, ratio, "×", bar))
        if size.device != "cuda":
            continue
        beyond = captured.peak_bytes - plain.peak_bytes
        total = torch.cuda.get_device_properties(0).total_memory
        report.add(at_most(f"{shape.name}: memory of the capture, {name}", beyond / total, "of all", MAX_PEAK_SHARE))
        few = synchronisations(step.captured)
        step.cut_into(8 * step.sequences)
        more = synchronisations(step.captured)
        step.cut_into(step.sequences // 8)
        report.add(Row(f"{shape.name}: waits a step, {name}", few))
        report.add(at_most(f"{shape.name}: waits more with 8 × the sequences, {name}", more - few, "", 0))
    decoder.remove_hooks()


class Steps:
    """Forward passes over random sequences of equal length."""

    def __init__(self, decoder: StandInDecoder, shape: DecoderShape, size: DeviceSize) -> None:
        self._decoder, self._shape, self._size = decoder, shape, size
        self._worker = StandInWorker(decoder)
        self._capture = CaptureConfig()
        self._ids = np.random.default_rng(0).integers(0, shape.vocabulary, size.step_tokens)
        self.cut_into(size.step_tokens // size.sequence_tokens)

    def cut_into(self, sequences: int) -> None:
        """From now on the step's tokens are so many sequences."""
        self.sequences = sequences
        length = len(self._ids) // sequences
        self._decoder.set_sequence_tokens(length)
        self._input_ids = torch.from_numpy(self._ids).to(self._size.device)
        self._positions = torch.arange(len(self._ids), device=self._size.device) % length
        self._make_requests()

    def install(self, capture: dict[str, Any]) -> None:
        """Put the hooks for ``capture`` on the decoder, in place of earlier ones."""
        self._decoder.remove_hooks()
        self._capture = validate(CaptureConfig, capture, "gpu check")
        _raised(self._worker.install_capture(self._capture.model_dump(mode="json"), 2_048))
        self._worker.begin_probe()
        self._decoder.set_sequence_tokens(PROBE_TOKENS)
        self._decoder(input_ids=self._input_ids[:PROBE_TOKENS], positions=self._positions[:PROBE_TOKENS])
        _raised(self._worker.end_probe())
        self.cut_into(self.sequences)

    def _make_requests(self) -> None:
        sequences = self._ids.reshape(self.sequences, -1)
        self._requests = [request_of(ids, number, self._capture) for number, ids in enumerate(sequences)]

    def plain(self) -> None:
        """A step without capture."""
        self._decoder(input_ids=self._input_ids, positions=self._positions)

    def captured(self) -> None:
        """A step with capture: announced, run, collected."""
        self._worker.expect(self._requests)
        self._decoder(input_ids=self._input_ids, positions=self._positions)
        collected = self._worker.collect_captured(range(self.sequences))
        assert len(collected) == self.sequences, f"{len(collected)} of {self.sequences} sequences were captured"


def _raised(answer: object) -> None:
    """Raise UserError if the worker refused."""
    if isinstance(answer, Refusal):
        raise UserError(answer.message)


def request_of(ids: np.ndarray, number: int, capture: CaptureConfig) -> Request:
    """What the engine is asked for of the sequence ``ids``, all of whose tokens are learned."""
    learned = np.arange(len(ids)) < len(ids) - 1
    places = np.zeros(len(ids), np.uint32)  # of a text that is not there: no signal asks for keywords
    return to_request(
        TokenSample(f"{number:032x}", "", "", "", ids.astype(np.uint32), learned, places, places), capture
    )
