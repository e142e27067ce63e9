"""Capture of one step: all sequences' rows reduced together, against one sequence at a time.

On a GPU the gain is in waits that do not happen, which ``make gpu-check`` counts; on a CPU there are none, so here
reducing together must only cost nothing. Random hidden states of a small teacher, 64 sequences of 32 tokens: logits
with the product with the head, draws, final and hidden states, attention rows. Both ways alternate in one process; the
best round counts, of those during which other programs left the processors alone. Stored values must be equal.
"""

import sys
import time

import numpy as np
import torch

from benchmarks.support.other_programs import watched
from benchmarks.support.results import Row, at_least, exit_status, write_results
from schemas.cache_config import CaptureConfig
from schemas.load import validate
from teacher_cache.engines.chunk_rows import CPU_ROWS
from teacher_cache.engines.step import CapturedSequence, Shares, Step, StepSequence
from teacher_cache.process import usable_cores
from teacher_cache.records import Request
from teacher_cache.signals.side_taps import taps_of
from teacher_cache.signals.tap import SequenceQueryKey

VOCABULARY, WIDTH, LAYERS, HEADS, KEY_HEADS, HEAD_SIZE = 8_000, 576, 4, 9, 3, 64
SEQUENCES, TOKENS = 64, 32
MIN_ROUNDS, MAX_SECONDS = 8, 180
CAPTURE = {
    "logits": {"k": 64, "temperatures": [1.0, 3.0]},
    "draws": {"n": 16},
    "final": {},
    "hidden": {"layers": [1, 2, 3], "positions": {"every": 8}},
    "attention": {"heads": 3, "keys": 32, "layer": 4, "positions": {"every": 8}},
}


def main() -> int:
    """Run the benchmark; returns the exit status."""
    ways = {"together": [sequences()], "alone": [[one] for one in sequences()]}
    model = Model()
    captured = {
        name: {number: one for step in steps for number, one in model.capture(step).items()}
        for name, steps in ways.items()
    }
    check_equal(captured["together"], captured["alone"])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    started = time.perf_counter()
    while min(map(len, seconds.values())) < MIN_ROUNDS and time.perf_counter() - started < MAX_SECONDS:
        for name, steps in ways.items():
            with watched() as watch:
                for step in steps:
                    model.capture(step)
            if watch.quiet:
                seconds[name].append(watch.seconds)
    if not all(seconds.values()):
        print("no round was undisturbed by other programs; try again on a quiet machine", file=sys.stderr)
        return 1
    best = {name: min(values) for name, values in seconds.items()}
    rows = [
        at_least("one sequence at a time ÷ together, time", best["alone"] / best["together"], "×", 1.0),
        Row("together", SEQUENCES * TOKENS / best["together"], "tok/s"),
    ]
    raw = {"seconds": seconds, "cores": usable_cores(), "sequences": SEQUENCES, "tokens": TOKENS, "capture": CAPTURE}
    write_results(
        "capture_step", f"Capture of a step of {SEQUENCES} × {TOKENS} tokens, all signals, on a CPU", rows, raw
    )
    return exit_status(rows)


def sequences() -> list[StepSequence]:
    """The sequences of the step; signals other than the logits at every eighth row."""
    rows, some = np.arange(TOKENS, dtype=np.int32), np.arange(0, TOKENS, 8, dtype=np.int32)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (SEQUENCES, TOKENS)).astype(np.uint32)
    side = {"hidden": some, "attention": some, "final": some}
    return [
        StepSequence(i, Request(ids[i], rows, side, seed=i), i * TOKENS, (i + 1) * TOKENS) for i in range(SEQUENCES)
    ]


class Model:
    """What a teacher shows of the step."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        n_tokens = SEQUENCES * TOKENS
        self._config = validate(CaptureConfig, CAPTURE, "benchmark")
        self._taps = taps_of(self._config, LAYERS)
        self._stream_ND = torch.randn(n_tokens, WIDTH)
        self._head_VD = torch.randn(VOCABULARY, WIDTH) / 8
        self._query_NHE, self._key_NGE = (
            torch.randn(n_tokens, HEADS, HEAD_SIZE),
            torch.randn(n_tokens, KEY_HEADS, HEAD_SIZE),
        )
        self._ids_N = torch.from_numpy(np.concatenate([one.request.input_ids for one in sequences()]).astype(np.int64))

    @torch.inference_mode()
    def capture(self, of_step: list[StepSequence]) -> dict[int, CapturedSequence]:
        """Capture these sequences in one step."""
        step = Step(of_step, self._taps, torch.device("cpu"))
        for number in (1, 2, 3):
            step.layer(number, self._stream_ND)
        step.final(self._stream_ND)
        step.query_key(LAYERS, self._seen)
        step.logits(self._ids_N, self._logits, self._config.logits, CPU_ROWS, Shares())
        return step.finish()

    def _seen(self, one: StepSequence) -> SequenceQueryKey:
        rows = slice(one.start, one.stop)
        return SequenceQueryKey(self._query_NHE[rows], self._key_NGE[rows], HEAD_SIZE**-0.5, None)

    def _logits(self, rows_n: torch.Tensor) -> torch.Tensor:
        return self._stream_ND[rows_n] @ self._head_VD.T


def check_equal(found: dict[int, CapturedSequence], wanted: dict[int, CapturedSequence]) -> None:
    """Raise RuntimeError unless both ways give the same, up to the rounding of the product with the head."""
    for number, one in wanted.items():
        for name, pieces in one.side.items():
            for piece, other in zip(pieces, found[number].side[name], strict=True):
                if not all(map(torch.equal, piece, other)):
                    raise RuntimeError(f"sequence {number}: {name} differs")
        other_logits = found[number].logits
        if one.logits is None or other_logits is None:
            raise RuntimeError(f"sequence {number}: no logits")
        torch.testing.assert_close(one.logits.logprobs_NK, other_logits.logprobs_NK, rtol=0, atol=1e-4)


if __name__ == "__main__":
    sys.exit(main())
