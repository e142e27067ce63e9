"""The class of every step, by the name in its settings."""

from typing import Any

from schemas.curate_steps import StepSettings
from teacher_cache.curation.curation_step import GlobalStep, LocalStep, StepPlace


def open_step(settings: StepSettings, place: StepPlace) -> LocalStep | GlobalStep:
    """The step of these settings; its module is imported here, since some need heavy libraries."""
    made: Any
    match settings.step:
        case "deduplicate":
            from teacher_cache.curation.deduplicate import Deduplicate

            made = Deduplicate(settings, place)
        case "mix":
            from teacher_cache.curation.mix_shares import Mix

            made = Mix(settings, place)
        # further steps: one case each
    return made
