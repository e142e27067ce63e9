"""``cache-tools verify --teacher``: rescore some samples and compare stored values with the results."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar, get_args

import numpy as np

from schemas.cache_config import (
    AttentionCapture,
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
from teacher_cache.signals.attention.record import AttentionSample
from teacher_cache.signals.hidden import StatesSignal, floats
from teacher_cache.signals.hidden.record import HiddenSample
from teacher_cache.signals.side_table import SIDE_SIGNALS
from teacher_cache.teacher import load_model_config
from tools.checking.agreement import GRID_TEMPERATURES, SHIFTS, Rows
from tools.checking.verdict import Rescored, Scored, States, judge

MAX_ROWS = 256  # compared per sample
ATTENTION = States("attention", "attention rows")
SideRows = TypeVar("SideRows", HiddenSample, AttentionSample)


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
    rows = None if manifest.capture.attention is None else _all_heads(manifest.capture.attention, teacher)
    capture = manifest.capture.model_copy(update={"logits": logits, **left_out, "attention": rows})
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
            kept = {name: _some_side_rows(reads.read(position, name), rng) for name in capture.side_settings}
            tokens = reader.read_tokens(position).input_ids
            if len(stored.positions):
                near = {name: _with_neighbours(sample.positions, len(tokens)) for name, sample in kept.items()}
                (again,) = engine.score([Request(tokens, _with_neighbours(stored.positions, len(tokens)), near)])
                errors: dict[States, dict[int, np.ndarray]] = {}
                for name, kind in states.items():
                    if name in kept:
                        settings = capture.side_settings[name]
                        labels = kind.labels(settings, manifest.teacher.num_layers)
                        compared = _relative_errors(kept[name], again.side[name], settings)
                        errors |= {States(name, label): one for label, one in zip(labels, compared, strict=True)}
                if "attention" in kept:
                    errors[ATTENTION] = _weight_errors(kept["attention"], again.side["attention"])
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


def _some_side_rows(sample: SideRows, rng: np.random.Generator) -> SideRows:
    rows = _some(len(sample.positions), rng)
    return replace(sample, **{name: values[rows] for name, values in vars(sample).items() if name != "heads"})


def _all_heads(attention: AttentionCapture, teacher: TeacherConfig) -> AttentionCapture:
    """Settings that capture all attention heads and more keys: which heads are most focused depends on the rows."""
    heads = load_model_config(teacher).get_text_config().num_attention_heads
    return attention.model_copy(update={"heads": heads, "keys": 2 * attention.keys + 32})


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


def _weight_errors(stored: AttentionSample, again: AttentionSample) -> dict[int, np.ndarray]:
    """‖stored - rescored‖ / ‖rescored‖ of each row's stored keys, mean over heads, by the shift of the rescored row."""
    place_H = np.array([np.flatnonzero(again.heads == head)[0] for head in stored.heads])
    found: dict[int, np.ndarray] = {}
    for shift in SHIFTS:
        at_P = np.searchsorted(again.positions, stored.positions + shift).clip(max=max(0, len(again.positions) - 1))
        here_P = np.flatnonzero(again.positions[at_P] == stored.positions + shift)
        keys_PHJ, weights_PHJ = (part[at_P[here_P]][:, place_H] for part in (again.keys, again.weights))
        dense_PHS = np.zeros((*keys_PHJ.shape[:2], 1 + max(stored.keys.max(initial=0), again.keys.max(initial=0))))
        rows, heads = np.ogrid[: len(here_P), : len(place_H)]
        np.maximum.at(dense_PHS, (rows[:, :, None], heads[:, :, None], keys_PHJ), weights_PHJ)
        there_PHM = np.take_along_axis(dense_PHS, stored.keys[here_P], axis=2)
        there_PHM[stored.weights[here_P] == 0] = 0
        off_PH, norm_PH = (np.linalg.norm(w_PHM, axis=2) for w_PHM in (stored.weights[here_P] - there_PHM, there_PHM))
        found[shift] = (off_PH / norm_PH.clip(min=1e-12)).mean(axis=1)
    return found
