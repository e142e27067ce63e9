"""Verdict on rescored samples: whether a cache's values are this teacher's, and if not, what they look like.

A stored value may differ by the codec's rounding and by the noise between two runs in the teacher's data type. Medians
over a sample's rows are compared with these limits: single rows of a correct cache may exceed them, whereas another
teacher, a shift or another temperature affects nearly all rows.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from schemas.manifest import Manifest
from teacher_cache.signals.logits.consistency import logprob_errors
from tools.checking.agreement import INVERSE_B, SHIFTS, UNIT, Rows, distances, divergence, entries, nearest_temperature

# Mean |Δ log p| between two runs, nats; measured between vLLM and transformers on a 135M teacher: 1e-5 in float32,
# 0.077 in bfloat16. The limits are multiples of these, as teachers differ.
NOISE = {"float32": 0.01, "float16": 0.05, "bfloat16": 0.2}
# Relative error of hidden states and attention rows: by quantisation, and between two runs.
WEIGHTS = "weights"
ROUNDING = {WEIGHTS: 0.01, "int8": 0.02, "int4": 0.25, "float8_e4m3": 0.06, "bfloat16": 0.006, "float16": 0.001}
HIDDEN_NOISE = {"float32": 0.005, "float16": 0.02, "bfloat16": 0.1}
TEMPERATURE_NOISE = {"float32": 0.02, "float16": 0.03, "bfloat16": 0.06}  # |log T| that a fit may be off by
BETTER = 0.4  # an explanation must reduce the distance to this fraction, …
NEAR = 0.25  # … and to within so many nats of the limit (temperatures are tried in steps)


@dataclass(frozen=True)
class Rescored:
    """Result of the comparison."""

    samples: int
    rows: int
    dtype: str  # that the teacher computed in
    same_fingerprint: bool
    problems: list[str]
    verdict: str
    figures: dict[str, dict[str, float]]  # statistics by stored quantity: nats, fractions, or relative errors
    distances: dict[str, float]  # median distance of the rows, nats: as stored, and under each explanation


class States(NamedTuple):
    """Hidden states of one layer, or attention rows: the signal that stores them, and their name in messages."""

    signal: str
    label: str


@dataclass(frozen=True)
class Scored:
    """One sample, stored and rescored."""

    rows: Rows
    states: dict[States, dict[int, np.ndarray]]  # relative errors of rows, by the shift of the rescored rows


def judge(scored: list[Scored], manifest: Manifest, dtype: str, same: bool) -> Rescored:
    """Statistics of all samples, and the verdict. ``same``: the fingerprints agree."""
    dtypes = [name for name in (dtype, manifest.teacher.dtype) if name in NOISE]
    noisiest = max(dtypes, key=lambda name: NOISE[name])
    rounding = max(logprob_errors(item.rows.stored.logprobs, manifest.codec).max(initial=0.0) for item in scored)
    by_shift = {shift: [distances(item.rows, shift) for item in scored] for shift in SHIFTS}
    medians = [float(np.median(found_PB[:, UNIT])) for found_PB in by_shift[0]]
    limits = [rounding + _allowed(NOISE[noisiest], len(found_PB)) for found_PB in by_shift[0]]
    bad = [number for number, (found, limit) in enumerate(zip(medians, limits, strict=True)) if found > limit]
    verdict, alternatives = _explain(by_shift, bad or list(range(len(scored))), bool(bad), noisiest, rounding)
    problems = []
    if verdict:
        share = f"{len(bad)} of {len(scored)} samples" if bad else f"all {len(scored)} samples"
        as_stored = alternatives["as stored"]
        problems.append(f"{share}: log-probabilities are off by {as_stored:.3g} nat in the median row: {verdict}")
    else:
        problems += _scalar_problems(scored, manifest, NOISE[noisiest])
    problems += _states_problems(scored, manifest, HIDDEN_NOISE[noisiest])
    return Rescored(
        samples=len(scored),
        rows=sum(len(item.rows.stored.positions) for item in scored),
        dtype=dtype,
        same_fingerprint=same,
        problems=problems,
        verdict=verdict or ("other values than this teacher's" if problems else "this teacher"),
        figures=_figures(scored, manifest),
        distances=alternatives,
    )


def _allowed(noise: float, n_rows: int) -> float:
    """Limit on the median of ``n_rows`` rows: higher for few rows, whose median varies more."""
    return noise * (1 + 3 / math.sqrt(n_rows))


def _explain(
    by_shift: dict[int, list[np.ndarray]], numbers: list[int], is_bad: bool, dtype: str, rounding: float
) -> tuple[str, dict[str, float]]:
    """Explanation of these samples' rows ('' if they are the teacher's), and the median distance under each one."""
    curves = {}
    for shift, found in by_shift.items():
        rows_NB = np.concatenate([found[number] for number in numbers])
        curves[shift] = np.median(rows_NB, axis=0) if len(rows_NB) else np.full(len(INVERSE_B), np.inf)
    as_stored = float(curves[0][UNIT])
    best = {shift: int(curve.argmin()) for shift, curve in curves.items()}
    alternatives = {"as stored": as_stored}
    for shift in SHIFTS:
        if shift and np.isfinite(curves[shift][UNIT]):
            alternatives[f"rows {shift:+d}"] = float(curves[shift][UNIT])
    temperature = 1 / INVERSE_B[best[0]]
    if best[0] != UNIT:
        alternatives[f"temperature {temperature:.2f}"] = float(curves[0][best[0]])
    shift = min(SHIFTS, key=lambda candidate: curves[candidate][best[candidate]])
    nearest, temperature = float(curves[shift][best[shift]]), 1 / INVERSE_B[best[shift]]
    is_warm = abs(math.log(temperature)) > TEMPERATURE_NOISE[dtype]
    if not is_bad:
        is_warm = is_warm and shift == 0 and nearest < as_stored - 0.1 * (rounding + NOISE[dtype]) - 0.1 * as_stored
        return (_named(0, temperature, True) if is_warm else ""), alternatives
    limit = rounding + NOISE[dtype]
    is_warm = is_warm or (not shift and best[0] != UNIT)
    if (shift or is_warm) and (nearest <= limit or nearest < min(BETTER * as_stored, limit + NEAR)):
        return _named(shift, temperature, is_warm), alternatives
    return "another teacher, as far as can be seen", alternatives


def _named(shift: int, temperature: float, is_warm: bool) -> str:
    parts = []
    if shift:
        parts.append(f"each row is the teacher's of one token {'later' if shift > 0 else 'before'}: rows are shifted")
    if is_warm:
        near = f"{temperature:.2f}" if abs(math.log(temperature)) < 0.2 else f"{temperature:.2g}"
        parts.append(f"the logits were divided by a temperature of about {near} before the softmax")
    return ", and ".join(parts)


def _scalar_problems(scored: list[Scored], manifest: Manifest, noise: float) -> list[str]:
    """The realised tokens' log-probabilities and the log-partitions."""
    rounding, problems = 0.5 / manifest.codec.scalar_steps_per_nat, []
    for name, differences in _scalar_differences(scored, manifest).items():
        temperature = name if isinstance(name, float) else 1.0
        sharper = noise * max(1, 1 / temperature)
        wrong = [
            number
            for number, found in enumerate(differences)
            if len(found) and np.median(found) > rounding + _allowed(sharper, len(found))
        ]
        if not wrong:
            continue
        off = float(np.median(np.concatenate([differences[number] for number in wrong])))
        share = f"{len(wrong)} of {len(scored)} samples"
        if not isinstance(name, float):
            problems.append(f"{share}: the realised token's log-probability is off by {off:.3g} nat in the median row")
            continue
        column = manifest.capture.logits.temperatures.index(name)
        like = np.concatenate(
            [
                nearest_temperature(scored[n].rows, scored[n].rows.stored.log_partition[:, column].astype(float))
                for n in wrong
            ]
        )
        problems.append(
            f"{share}: the log-partition of temperature {name:g} is off by {off:.3g} nat in the median row: it is that "
            f"of about {np.median(like):.2g}"
        )
    return problems


def _scalar_differences(scored: list[Scored], manifest: Manifest) -> dict[str | float, list[np.ndarray]]:
    """|Δ| of each sample's rows, nats: of the realised token's log-probability, and of log-partitions at T ≠ 1."""
    found: dict[str | float, list[np.ndarray]] = {"next": []}
    for item in scored:
        here_P, there_P = item.rows.aligned(0)
        stored, again = item.rows.stored, item.rows.again
        next_P = np.abs(stored.next_logprob[here_P].astype(np.float64) - again.next_logprob[there_P])
        found["next"].append(next_P[np.isfinite(next_P)])
        for column, temperature in enumerate(manifest.capture.logits.temperatures):
            if temperature != 1:
                at = item.rows.temperatures.index(temperature)
                wanted_P = again.log_partition[there_P, at].astype(np.float64)
                found.setdefault(float(temperature), []).append(np.abs(stored.log_partition[here_P, column] - wanted_P))
    return found


def _states_problems(scored: list[Scored], manifest: Manifest, noise: float) -> list[str]:
    problems = []
    for states in dict.fromkeys(states for item in scored for states in item.states):
        dtype = getattr(manifest.capture.side_settings[states.signal], "dtype", WEIGHTS)
        limit = ROUNDING[dtype] + noise
        every = [item.states[states] for item in scored if states in item.states and len(item.states[states][0])]
        wrong = [
            errors for errors in every if np.median(errors[0]) > limit * (1 + 3 / math.sqrt(max(1, len(errors[0]))))
        ]
        if not wrong:
            continue
        medians = {
            shift: float(np.median(np.concatenate([errors[shift] for errors in wrong])))
            for shift in SHIFTS
            if any(len(errors[shift]) for errors in wrong)
        }
        best = min(medians, key=lambda shift: medians[shift])
        like = f": {_named(best, 1.0, False)}" if best and medians[best] < BETTER * medians[0] else ""
        problems.append(
            f"{len(wrong)} of {len(scored)} samples: {states.label}: off by {medians[0]:.1%} in the median row, noise "
            f"is at most {limit:.1%}{like}"
        )
    return problems


def _figures(scored: list[Scored], manifest: Manifest) -> dict[str, dict[str, float]]:
    compared = [entries(item.rows) for item in scored]
    differences = np.concatenate([np.abs(stored - again)[found] for _, _, stored, again, found in compared])
    n_entries = sum(int((~np.isnan(stored)).sum()) for _, _, stored, _, _ in compared)
    best = np.concatenate(
        [
            item.rows.stored.ids[h, 0] == item.rows.again.ids[t, 0]
            for item, (h, t, *_) in zip(scored, compared, strict=True)
        ]
    )
    figures: dict[str, dict[str, float]] = {
        "log-probabilities, |Δ| in nat": _quantiles(differences),
        "KL(rescored ‖ stored), nat": _quantiles(np.concatenate([divergence(item.rows) for item in scored])),
        "shares": {
            "stored entries found again": len(differences) / max(1, n_entries),
            "same best token": float(best.mean()),
        },
    }
    for name, found in _scalar_differences(scored, manifest).items():
        what = (
            f"log-partition at temperature {name:g}" if isinstance(name, float) else "realised token's log-probability"
        )
        figures[f"{what}, |Δ| in nat"] = _quantiles(np.concatenate(found))
    for states in dict.fromkeys(states for item in scored for states in item.states):
        errors = np.concatenate([item.states[states][0] for item in scored if states in item.states])
        figures[f"{states.label}, relative error"] = _quantiles(errors)
    return figures


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    median, p90, p99 = np.quantile(values, [0.5, 0.9, 0.99]).tolist()
    mean, most = float(values.mean()), float(values.max())
    return {"mean": mean, "median": median, "p90": p90, "p99": p99, "max": most}
