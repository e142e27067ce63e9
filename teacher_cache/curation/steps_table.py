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
        case "decontaminate":
            from teacher_cache.curation.decontaminate import Decontaminate

            made = Decontaminate(settings, place)
        case "language":
            from teacher_cache.curation.language import Language

            made = Language(settings, place)
        case "broken_text":
            from teacher_cache.curation.broken_text import BrokenText

            made = BrokenText(settings, place)
        case "length":
            from teacher_cache.curation.length import Length

            made = Length(settings, place)
        case "code":
            from teacher_cache.curation.code import Code

            made = Code(settings, place)
        case "reward":
            from teacher_cache.curation.reward import Reward

            made = Reward(settings, place)
        case "reasoning":
            from teacher_cache.curation.check_reasoning import Reasoning

            made = Reasoning(settings, place)
    return made
