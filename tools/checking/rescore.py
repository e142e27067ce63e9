"""``cache-tools verify --teacher``: rescore some samples and compare stored values with the results."""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import numpy as np

from schemas.cache_config import (
    CacheConfig,
    Dtype,
    EngineConfig,
    LogitsCapture,
    OutputConfig,
    Quantised,
    TeacherConfig,
)
from schemas.errors import UserError
from schemas.load import validate
from teacher_cache.records import LogitsSample, Request
from teacher_cache.shards.reader import CacheReader
from teacher_cache.signals.hidden import StatesSignal, floats
from teacher_cache.signals.hidden.record import HiddenSample
from teacher_cache.signals.side_table import SIDE_SIGNALS
from tools.checking.agreement import GRID_TEMPERATURES, SHIFTS, Rows
from tools.checking.verdict import Rescored, Scored, States, judge

MAX_ROWS = 256  # compared per sample


def rescore(
    url: str,
    teacher: str,
    samples: int = 20,
    seed: int = 0,
    dtype: str | None = None,
    device: str = "auto",
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Rescored:
    """Rescore random samples of a cache with the teacher in the folder ``teacher`` and compare.

    Args:
        url: the cache, already checked by ``verify``.
        teacher: a Hugging Face model folder.
        samples: maximum number of samples.
        seed: seed of their choice.
        dtype: data type that the teacher computes in; None: as in the manifest.
        device: as in the settings of the transformers engine.
        advance: called with (samples done, samples in all).

    Raises UserError if cache or teacher cannot be read.
    """
    from teacher_cache.teacher import describe_teacher, older_fingerprint

    reader = CacheReader(url, ("tokens", "logits"))
    manifest = reader.manifest
    chosen = dtype or manifest.teacher.dtype
    config = TeacherConfig(path=teacher, dtype=_as_dtype(chosen))
    found, wanted = describe_teacher(config), manifest.teacher
    same = wanted.fingerprint == found.fingerprint or wanted.fingerprint == older_fingerprint(config)
    shape = [(info.vocab_size, info.num_layers, info.hidden_size) for info in (found, wanted)]
    if shape[0] != shape[1]:
        problem = "{}: vocabulary {:,}, {} layers of {} channels; the cache's teacher has {:,}, {} of {}".format(
            teacher, *shape[0], *shape[1]
        )
        return Rescored(0, 0, chosen, same, [problem], "another teacher", {}, {})
    scored = _score(url, reader, config, samples, seed, device, advance)
    return judge(scored, manifest, chosen, same)


def _as_dtype(name: str) -> Dtype:
    if name not in get_args(Dtype):
        raise UserError(f"dtype {name!r}: expected one of {', '.join(get_args(Dtype))}; set one with --dtype")
    return name  # type: ignore[return-value]


def _score(
    url: str,
    reader: CacheReader,
    teacher: TeacherConfig,
    samples: int,
    seed: int,
    device: str,
    advance: Callable[[int, int], None],
) -> list[Scored]:
    from teacher_cache.engines.transformers import TransformersEngine

    manifest, rng = reader.manifest, np.random.default_rng(seed)
    captured = manifest.capture.logits
    temperatures = [*GRID_TEMPERATURES, *(t for t in captured.temperatures if t not in GRID_TEMPERATURES)]
    k = min(manifest.teacher.vocab_size, 2 * captured.k + 32)
    logits = LogitsCapture(k=k, temperatures=temperatures, positions="all")
    states = {name: kind for name, kind in SIDE_SIGNALS.items() if isinstance(kind, StatesSignal)}
    left_out = {name: None for name in SIDE_SIGNALS if name not in states}
    capture = manifest.capture.model_copy(update={"logits": logits, **left_out})
    chosen = np.sort(rng.choice(len(reader), min(samples, len(reader)), replace=False)).tolist()
    longest = int(reader.num_tokens[chosen].max(initial=2))
    config = CacheConfig(
        teacher=teacher,
        engine=validate(EngineConfig, {"kind": "transformers", "device": device}, "--device"),
        corpus=manifest.corpus.settings.model_copy(update={"max_tokens": longest}),
        capture=capture,
        output=OutputConfig(path=url),
    )
    reads = CacheReader(url, ("tokens", *capture.side_settings), manifest)
    found = []
    with TransformersEngine(config) as engine:
        for number, position in enumerate(chosen):
            stored = _some_rows(reader.read_logits(position), rng)
            kept = {name: _some_states(reads.read(position, name), rng) for name in capture.side_settings}
            tokens = reader.read_tokens(position).input_ids
            if len(stored.positions):
                near = {name: _with_neighbours(states.positions, len(tokens)) for name, states in kept.items()}
                (again,) = engine.score([Request(tokens, _with_neighbours(stored.positions, len(tokens)), near)])
                errors: dict[States, dict[int, np.ndarray]] = {}
                for name, settings in capture.side_settings.items():
                    labels = states[name].labels(settings, manifest.teacher.num_layers)
                    compared = _relative_errors(kept[name], again.side[name], settings)
                    errors |= {States(name, label): one for label, one in zip(labels, compared, strict=True)}
                found.append(Scored(Rows(stored, again.logits, temperatures), errors))
            advance(number + 1, len(chosen))
    if not found:
        raise UserError(f"{url}: the {len(chosen)} samples drawn have no stored row; try another --seed")
    return found


def _some(n_rows: int, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.choice(n_rows, min(n_rows, MAX_ROWS), replace=False))


def _some_rows(sample: LogitsSample, rng: np.random.Generator) -> LogitsSample:
    rows = _some(len(sample.positions), rng)
    return replace(sample, **{name: values[rows] for name, values in vars(sample).items() if name != "num_tokens"})


def _some_states(sample: HiddenSample, rng: np.random.Generator) -> HiddenSample:
    rows = _some(len(sample.positions), rng)
    return HiddenSample(**{name: values[rows] for name, values in vars(sample).items()})


def _with_neighbours(positions_P: np.ndarray, num_tokens: int) -> np.ndarray:
    """These rows and their neighbours, int32, ascending."""
    rows = np.unique(np.concatenate([positions_P + shift for shift in SHIFTS]))
    return rows[(rows >= 0) & (rows < num_tokens)].astype(np.int32)


def _relative_errors(stored: HiddenSample, again: HiddenSample, settings: Quantised) -> list[dict[int, np.ndarray]]:
    """‖stored - rescored‖ / ‖rescored‖ of each row, [P]: one dictionary per layer, by the shift of the rescored row."""
    stored_PCD, again_QCD = (floats(sample, settings).astype(np.float64) for sample in (stored, again))
    found: list[dict[int, np.ndarray]] = [{} for _ in range(stored_PCD.shape[1])]
    for shift in SHIFTS:
        at_P = np.searchsorted(again.positions, stored.positions + shift).clip(max=max(0, len(again.positions) - 1))
        here_P = np.flatnonzero(again.positions[at_P] == stored.positions + shift)
        there_PCD = again_QCD[at_P[here_P]]
        off_PC, norm_PC = (np.linalg.norm(v_PCD, axis=2) for v_PCD in (stored_PCD[here_P] - there_PCD, there_PCD))
        for errors, errors_P in zip(found, (off_PC / norm_PC.clip(min=1e-12)).T, strict=True):
            errors[shift] = errors_P
    return found
