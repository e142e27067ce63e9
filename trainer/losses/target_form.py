"""Choice of TLA's target form, the signals that it needs, and the target built from them."""

import torch

from schemas.cache_config import CaptureConfig
from schemas.errors import UserError
from schemas.manifest import Signal
from schemas.train_config import Tail, TargetForm, TlaConfig
from teacher_cache.signals.hidden.capture import dequantise
from trainer.losses.targets import DenseTarget, ListedTarget, MixedTarget, Target, draws_target, top_k_target
from trainer.losses.teacher_rows import TeacherRows

DEQUANTISED_ROWS = 4096  # at one time: each needs some 16 bytes a channel beside the result


def target_form(tla: TlaConfig, capture: CaptureConfig) -> TargetForm:
    """TLA's target form. Raises UserError if the cache lacks it, or tail, divergence or temperature do not fit it."""
    form: TargetForm = tla.target or ("final" if capture.final else "draws" if capture.draws else "top_k")
    if form != "top_k" and getattr(capture, form) is None:
        raise UserError(
            f"losses.tla.target: {form}: the cache has no {form} signal; cache the teacher with capture.{form} set, or "
            "leave the key out"
        )
    if form != "final":
        temperatures = capture.logits.temperatures
        if form == "draws":
            assert capture.draws is not None
            temperatures = capture.draws.temperatures
        if tla.temperature not in temperatures:
            others = "" if tla.temperature not in capture.logits.temperatures else f", or {_entries(capture)}"
            raise UserError(
                f"losses.tla.temperature: {tla.temperature} is not among {temperatures}, the temperatures of the "
                f"cache's {form} target; choose one of them{others}, or make a cache with this one in "
                f"capture.{'draws' if form == 'draws' else 'logits'}.temperatures"
            )
    if form != "top_k" and tla.tail != "bucket":
        raise UserError(
            f"losses.tla.tail: {tla.tail} needs target: top_k, not {form}; leave it out, or set {_entries(capture)}"
        )
    if form == "draws" and tla.divergence != "forward":
        raise UserError(
            f"losses.tla.divergence: {tla.divergence} cannot be estimated from draws; use forward, or "
            f"{_entries(capture)}, or a cache with capture.final"
        )
    return form


def _entries(capture: CaptureConfig) -> str:
    return f"losses.tla.target: top_k, the {capture.logits.k} stored entries"


def said_of_target(tla: TlaConfig, form: TargetForm) -> str:
    """One log line on the chosen target."""
    chosen = f"{form} (losses.tla.target)" if tla.target else f"{form} (the most informative in the cache)"
    whole = {
        "top_k": "the stored entries of each row",
        "draws": "random draws from each row",
        "final": "full distributions rebuilt with the teacher's output head, about twice as slow as top_k",
    }
    faster = "; losses.tla.target: top_k is the faster choice" if form == "final" and not tla.target else ""
    return f"TLA target: {chosen}: {whole[form]}{faster}"


def signals_of(form: TargetForm, capture: CaptureConfig) -> frozenset[Signal]:
    """The signals that a target form is built from."""
    if form != "draws":
        return frozenset({"logits" if form == "top_k" else form})
    assert capture.draws is not None
    return frozenset({"draws", "logits"} if capture.draws.region == "tail" else {"draws"})


def make_target(
    form: TargetForm, rows: TeacherRows, capture: CaptureConfig, temperature: float, vocabulary: int, tail: Tail
) -> Target:
    """Target of the rows in this form, for a student of ``vocabulary`` tokens (rows of its head)."""
    if form == "final":
        return final_target(rows, capture, temperature, vocabulary)
    if form == "top_k":
        return stored_target(rows, capture, temperature, vocabulary, tail)
    draws = capture.draws
    assert draws is not None
    assert rows.draws_NTM is not None
    assert rows.entropy_NT is not None
    exact = stored_target(rows, capture, temperature, vocabulary) if draws.region == "tail" else None
    column = draws.temperatures.index(temperature)
    return draws_target(exact, rows.draws_NTM[:, column], rows.entropy_NT[:, column], vocabulary)


def stored_target(
    rows: TeacherRows, capture: CaptureConfig, temperature: float, vocabulary: int, tail: Tail = "bucket"
) -> ListedTarget:
    """Target from the rows' stored entries."""
    column = capture.logits.temperatures.index(temperature)
    return top_k_target(rows.ids_NK, rows.logprobs_NK, rows.log_partition_NT[:, column], temperature, vocabulary, tail)


def final_target(
    rows: TeacherRows, capture: CaptureConfig, temperature: float, vocabulary: int
) -> DenseTarget | MixedTarget:
    """Target from the rows' final hidden states; with ``dense_N``, from stored entries where it is 0."""
    dense = dense_target(rows, capture, temperature)
    if rows.dense_N is None:
        return dense
    stored = stored_target(rows, capture, temperature, vocabulary)
    listed_n = (rows.dense_N == 0).nonzero().squeeze(1).to(rows.ids_NK.device)
    kind_F = rows.dense_N[rows.dense_N > 0]
    mapped = []
    for kind, token_map in enumerate(rows.token_maps, start=1):
        own_n = (kind_F == kind).nonzero().squeeze(1).to(rows.ids_NK.device)
        mapped.append(DenseTarget(dense.hidden_ND[own_n], dense.head, temperature, token_map))
    return MixedTarget(rows.dense_N, (stored.rows(listed_n), *mapped))


def dense_target(rows: TeacherRows, capture: CaptureConfig, temperature: float) -> DenseTarget:
    """Target from the rows' final hidden states."""
    assert rows.final is not None
    assert rows.head is not None
    assert capture.final is not None
    parts = [
        dequantise(values, scales, outlier_index, outliers, capture.final)[:, 0]
        for values, scales, outlier_index, outliers in zip(
            *(part.split(DEQUANTISED_ROWS) for part in rows.final), strict=True
        )
    ]
    hidden_ND = torch.cat(parts)
    return DenseTarget(hidden_ND, rows.head, temperature)
