"""Compare an engine with transformers at startup, on every captured signal of two short sequences.

The reference is an independent float32 pass (``reference.py``). In a 16-bit dtype, rounding errors depend on the
teacher, so they are measured: the same reference runs again in that dtype, and the engine's mean error may be a few
times as large. Means over rows, because the check looks for a wrong model, not for a wrong bit.
"""

import logging
from typing import Any, NamedTuple

import numpy as np
import torch

from schemas.cache_config import CacheConfig, CaptureConfig, LogitsCapture, Quantised
from schemas.errors import UserError
from teacher_cache.engines.engine import Engine
from teacher_cache.engines.reference import Computed, Reference
from teacher_cache.model_class import model_class
from teacher_cache.process import available_memory_bytes
from teacher_cache.records import Captured, LogitsSample, Request
from teacher_cache.signals.attention.record import AttentionSample
from teacher_cache.signals.hidden.capture import quantise, to_floats, to_hidden_sample
from teacher_cache.teacher import load_model_config

logger = logging.getLogger(__name__)

MAX_PARAMETERS = 2_000_000_000
TOKENS = 48
LONGEST_WINDOW = 512  # tokens; sequences are made longer than a sliding window, up to this one
NOISE_FACTOR = 3.0  # allowed error of an engine, as a multiple of the rounding error in transformers
UNITS = {"logits": "nats", "final": "(relative)", "hidden": "(relative)", "attention": "in a weight"}


class Floors(NamedTuple):
    """Errors allowed in addition to those of rounding and of the stored precision."""

    logits: float  # nats
    states: float  # relative, of hidden and final states
    weights: float  # of attention


FLOAT32 = Floors(logits=5e-3, states=1e-3, weights=2e-3)  # for the worst entry
HALF = Floors(logits=1e-2, states=1e-2, weights=2e-3)  # for the mean


class Expected(NamedTuple):
    """The reference values of each request: in float32, and in the teacher's own dtype."""

    requests: list[Request]
    exact: list[Computed]
    rounded: list[Computed] | None  # None: the teacher computes in float32


def expected(config: CacheConfig) -> Expected | None:
    """Compute the reference values. None if the check is off, or (logged) if ``auto`` skips this teacher.

    Call it before the engine loads: vLLM patches classes of transformers, and fills the memory. Raises UserError if
    ``engine.self_check: on`` cannot be done.
    """
    if config.engine.self_check == "off":
        return None
    try:
        if skipped := _reason_to_skip(config):
            raise UserError(skipped)
        reference = Reference(config.teacher)
        requests = _requests(config)
        exact = [reference.compute(request.input_ids, config.capture) for request in requests]
        rounded = None
        if config.teacher.dtype != "float32":
            reference.in_dtype(getattr(torch, config.teacher.dtype))
            rounded = [reference.compute(request.input_ids, config.capture) for request in requests]
    except Exception as error:  # the engine may run a teacher that transformers cannot load, or not on this machine
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        if config.engine.self_check == "on":
            raise UserError(f"engine.self_check: on: {reason}; set it to auto or off") from error
        logger.info("self-check: the engine was not compared with transformers: %s", reason)
        return None
    return Expected(requests, exact, rounded)


def self_check(engine: Engine, config: CacheConfig, wanted: Expected) -> dict[str, float]:
    """Return the largest error of each signal. Raises UserError naming signal, layer and error if one is too large."""
    captured = engine.score(wanted.requests)
    found = measure(captured, wanted, config.capture)
    if wanted.rounded is None:
        allowed = {key: floor_of(key, FLOAT32) for key in found}
        errors = {key: error.worst for key, error in found.items()}
    else:
        noise = rounding(wanted.rounded, wanted.exact, config.capture)
        allowed = {key: NOISE_FACTOR * noise[key].mean + floor_of(key, HALF) for key in found}
        errors = {key: error.mean for key, error in found.items()}
    stored = _stored_precision(wanted.exact, config.capture)
    for key, error in errors.items():
        limit = allowed[key] + 2 * stored.get(key.signal, 0.0)
        if not error <= limit:
            raise UserError(_message(config, key, error, limit))
    if config.capture.attention is not None and Key("attention") not in errors:
        logger.warning("self-check: attention rows were not compared: transformers returns no weights of that layer")
    text = ", ".join(f"{key} {error:.1g} {UNITS[key.signal]}" for key, error in errors.items())
    logger.info("self-check: %s agrees with transformers: %s", config.engine.kind, text)
    return {key.signal: max(errors[other] for other in errors if other.signal == key.signal) for key in errors}


class Key(NamedTuple):
    """A signal and, for hidden states, the layer."""

    signal: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.signal if self.layer is None else f"{self.signal} of layer {self.layer}"


class Error(NamedTuple):
    """Over all entries (logits, attention) or rows (states)."""

    mean: float
    worst: float


def floor_of(key: Key, floors: Floors) -> float:
    """The floor of a signal's tolerance."""
    return {"logits": floors.logits, "attention": floors.weights}.get(key.signal, floors.states)


def measure(captured: list[Captured], wanted: Expected, capture: CaptureConfig) -> dict[Key, Error]:
    """Errors of an engine's samples against the float32 reference, by signal and layer."""
    errors: dict[Key, list[torch.Tensor]] = {}
    for sample, request, computed in zip(captured, wanted.requests, wanted.exact, strict=True):
        found = {Key("logits"): _logits_errors(sample.logits, request, computed.logits_SV, capture.logits)}
        if capture.final is not None:
            found[Key("final")] = _state_errors(to_floats(sample.side["final"], capture.final)[:, 0], computed.final_SD)
        if capture.hidden is not None:
            states_SCD = to_floats(sample.side["hidden"], capture.hidden)
            for column, (layer, wanted_SD) in enumerate(computed.hidden_SD.items()):
                found[Key("hidden", layer)] = _state_errors(states_SCD[:, column], wanted_SD)
        if capture.attention is not None and computed.weights_HSS is not None:
            found[Key("attention")] = _attention_errors(sample.side["attention"], computed.weights_HSS)
        for key, error in found.items():
            errors.setdefault(key, []).append(error.flatten())
    return {key: _summary(torch.cat(parts)) for key, parts in errors.items()}


def rounding(rounded: list[Computed], exact: list[Computed], capture: CaptureConfig) -> dict[Key, Error]:
    """Errors of the reference in the teacher's dtype against the one in float32, defined as in ``measure``."""
    errors: dict[Key, list[torch.Tensor]] = {}
    for one, other in zip(rounded, exact, strict=True):
        ids_SK = other.logits_SV.topk(capture.logits.k).indices
        one_SV, other_SV = one.logits_SV.log_softmax(1), other.logits_SV.log_softmax(1)
        found = {
            Key("logits"): (one_SV - other_SV).gather(1, ids_SK).abs(),
            Key("final"): _state_errors(one.final_SD, other.final_SD),
        }
        for layer, wanted_SD in other.hidden_SD.items():
            found[Key("hidden", layer)] = _state_errors(one.hidden_SD[layer], wanted_SD)
        if capture.attention is not None and one.weights_HSS is not None and other.weights_HSS is not None:
            keys_HSM = other.weights_HSS.topk(min(capture.attention.keys, other.weights_HSS.shape[2])).indices
            found[Key("attention")] = (one.weights_HSS - other.weights_HSS).gather(2, keys_HSM).abs()
        for key, error in found.items():
            errors.setdefault(key, []).append(error.flatten())
    return {key: _summary(torch.cat(parts)) for key, parts in errors.items()}


def _logits_errors(
    sample: LogitsSample, request: Request, logits_SV: torch.Tensor, capture: LogitsCapture
) -> torch.Tensor:
    """Errors in nats: of stored entries (by id and by rank), log-partitions, and realised next tokens."""
    log_p_SV = logits_SV.double().log_softmax(1)
    stored = torch.from_numpy(np.isfinite(sample.logprobs))
    logprobs_SK = torch.from_numpy(sample.logprobs).double()
    at_ids_SK = log_p_SV.gather(1, torch.from_numpy(sample.ids).long())
    at_ranks_SK = log_p_SV.topk(sample.ids.shape[1]).values
    partitions_ST = torch.stack([(log_p_SV / t).logsumexp(1) for t in capture.temperatures], dim=1)
    next_S1 = torch.from_numpy(request.input_ids[1:].astype(np.int64))[:, None]
    return torch.cat(
        [
            (logprobs_SK - at_ids_SK)[stored],
            (logprobs_SK - at_ranks_SK)[stored],
            (torch.from_numpy(sample.log_partition).double() - partitions_ST).flatten(),
            torch.from_numpy(sample.next_logprob[:-1]).double() - log_p_SV[:-1].gather(1, next_S1).squeeze(1),
        ]
    ).abs()


def _state_errors(found_SD: torch.Tensor, wanted_SD: torch.Tensor) -> torch.Tensor:
    """Relative error of each row, [S]."""
    return (found_SD - wanted_SD).norm(dim=1) / wanted_SD.norm(dim=1)


def _attention_errors(sample: AttentionSample, weights_HSS: torch.Tensor) -> torch.Tensor:
    """Errors of the stored weights, by key and by rank."""
    found_HSM = torch.from_numpy(sample.weights).transpose(0, 1)
    wanted_HSS = weights_HSS[torch.from_numpy(sample.heads).long()]
    n_keys = min(found_HSM.shape[2], wanted_HSS.shape[2])
    found_HSM, keys_HSM = found_HSM[:, :, :n_keys], torch.from_numpy(sample.keys).transpose(0, 1)[:, :, :n_keys]
    at_keys_HSM = wanted_HSS.gather(2, keys_HSM.long()).where(found_HSM > 0, 0.0)
    return torch.cat([found_HSM - at_keys_HSM, found_HSM - wanted_HSS.topk(n_keys).values]).abs()


def _summary(errors: torch.Tensor) -> Error:
    return Error(errors.double().mean().item(), errors.max().item())


def _stored_precision(exact: list[Computed], capture: CaptureConfig) -> dict[str, float]:
    """Largest relative error over all rows that the configured quantisation of states causes, by signal."""

    def largest(states: list[torch.Tensor], quantised: Quantised) -> float:
        return max(_state_errors(_as_stored(state, quantised), state).max().item() for state in states)

    found = {}
    if capture.final is not None:
        found["final"] = largest([one.final_SD for one in exact], capture.final)
    if capture.hidden is not None:
        found["hidden"] = largest([state for one in exact for state in one.hidden_SD.values()], capture.hidden)
    return found


def _as_stored(states_SD: torch.Tensor, capture: Quantised) -> torch.Tensor:
    sample = to_hidden_sample(np.arange(len(states_SD), dtype=np.int32), [quantise(states_SD, capture)])
    return to_floats(sample, capture)[:, 0]


def _message(config: CacheConfig, key: Key, error: float, limit: float) -> str:
    kind = load_model_config(config.teacher).architectures or ["model"]
    other = {"vllm": "transformers", "transformers": "vllm"}[config.engine.kind]
    leave_out = "" if key.signal == "logits" else f", or leave capture.{key.signal} out"
    return (
        f"engine.self_check: the {config.engine.kind} engine computes other values of a {kind[0]} than an independent "
        f"pass of transformers: {key} off by {error:.3g} {UNITS[key.signal]}, at most {limit:.2g} expected; set "
        f"engine.kind: {other}{leave_out}"
    )


def _reason_to_skip(config: CacheConfig) -> str | None:
    """Why this teacher is not checked; None if it is."""
    model_config = load_model_config(config.teacher)
    if getattr(model_config, "quantization_config", None) is not None:
        return "the weights of the teacher are quantised"
    with torch.device("meta"):
        model = model_class(model_config).from_config(model_config, trust_remote_code=config.teacher.trust_remote_code)
    parameters = model.num_parameters()
    needed, free = 4 * parameters, available_memory_bytes()
    if config.engine.self_check == "auto" and parameters > MAX_PARAMETERS:
        return f"the teacher has {parameters / 1e9:.1f} B parameters, more than 2 B (engine.self_check: on checks it)"
    if free is not None and needed > free / 2:
        return f"the teacher takes {needed / 1e9:.1f} GB as float32, and {free / 1e9:.1f} GB of memory are free"
    return None


def _requests(config: CacheConfig) -> list[Request]:
    """A random sequence, longer than a short sliding window, and one of a repeated pattern; no special tokens."""
    model_config = load_model_config(config.teacher)
    text_config = model_config.get_text_config()
    window = getattr(text_config, "sliding_window", None) or 0
    length = max(TOKENS, window + TOKENS // 2) if window <= LONGEST_WINDOW else TOKENS
    length = min(length, config.corpus.max_tokens)
    ordinary = np.setdiff1d(np.arange(text_config.vocab_size), _special(model_config, text_config))
    rng = np.random.default_rng(0)
    random, pattern = rng.choice(ordinary, length), rng.choice(ordinary, 5)
    rows = [np.arange(n, dtype=np.int32) for n in (length, min(length, TOKENS // 2))]
    return [
        Request(ids.astype(np.uint32), positions, seed=seed)
        for seed, (ids, positions) in enumerate(zip((random, np.resize(pattern, len(rows[1]))), rows, strict=True))
    ]


def _special(*configs: Any) -> list[int]:
    """Token ids with a meaning in a configuration: beginning, end, padding, image placeholders."""
    values = [value for config in configs for name, value in vars(config).items() if name.endswith("token_id")]
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return [value for value in flat if isinstance(value, int)]
