"""Which form of target a run learns from, and which signals of the cache it therefore reads."""

from typing import get_args

from schemas.cache_config import CaptureConfig
from schemas.errors import UserError
from schemas.manifest import Signal
from schemas.train_config import LossConfig, TargetForm, TlaConfig
from trainer.losses.schedule import always_zero


def target_form(tla: TlaConfig, capture: CaptureConfig) -> TargetForm:
    """What TLA learns from. Raises UserError when the cache does not have it at this temperature, or as asked for."""
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
            f"losses.tla.tail: {tla.tail} goes with target: top_k, not {form}; leave it out, or set {_entries(capture)}"
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
    """What TLA learns from, in words."""
    chosen = f"as losses.tla.target says: {form}" if tla.target else f"the richest that the cache has: {form}"
    whole = {
        "top_k": "the stored entries of each row",
        "draws": "random draws from each row",
        "final": "whole distributions, rebuilt with the teacher's output head: about twice as slow as top_k",
    }
    faster = ", which losses.tla.target: top_k would take" if form == "final" and not tla.target else ""
    return f"target of TLA, {chosen}, {whole[form]}{faster}"


def needed_signals(losses: LossConfig, capture: CaptureConfig) -> tuple[Signal, ...]:
    """The signals that training with these losses reads; no file of another one is touched."""
    wanted: set[Signal] = {"tokens"}
    if not always_zero(losses.tla.weight):
        form = target_form(losses.tla, capture)
        wanted |= {"logits"} if form == "top_k" else {form}
        wanted |= {"logits"} if form == "draws" and _has_head(capture) else set()
    wanted |= {"hidden"} if losses.lhsm is not None else set()
    wanted |= {"attention"} if losses.apc is not None else set()
    return tuple(signal for signal in get_args(Signal) if signal in wanted)


def evaluation_signals(capture: CaptureConfig) -> tuple[Signal, ...]:
    """The signals that an evaluation reads."""
    return ("tokens", "logits", "final") if capture.final is not None else ("tokens", "logits")


def _has_head(capture: CaptureConfig) -> bool:
    return capture.draws is not None and capture.draws.region == "tail"
