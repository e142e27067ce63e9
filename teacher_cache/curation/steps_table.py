"""The class of every step, by the name in its settings."""

from importlib.util import find_spec

from schemas.curate_steps import StepSettings
from schemas.errors import UserError
from teacher_cache.curation.curation_step import GlobalStep, LocalStep, StepPlace

PACKAGES = {  # modules of the extra `curate`
    "deduplicate": ("rensa",),
    "language": ("py3langid",),
    "broken_text": ("ftfy",),
    "code": ("markdown_it",),
    "reasoning": ("markdown_it", "math_verify"),
}


def open_step(settings: StepSettings, place: StepPlace) -> LocalStep | GlobalStep:
    """The step of these settings; its module is imported here, since some need heavy libraries.

    Raises UserError if a package is missing.
    """
    for package in PACKAGES.get(settings.step, ()):
        if find_spec(package) is None:
            raise UserError(
                f"{place.key} ({settings.step}): the package {package} is not installed; install the project with its "
                "extra `curate`: pip install '.[curate]'"
            )
    match settings.step:
        case "deduplicate":
            from teacher_cache.curation.deduplicate import Deduplicate

            return Deduplicate(settings, place)
        case "mix":
            from teacher_cache.curation.mix_shares import Mix

            return Mix(settings, place)
        case "decontaminate":
            from teacher_cache.curation.decontaminate import Decontaminate

            return Decontaminate(settings, place)
        case "language":
            from teacher_cache.curation.language import Language

            return Language(settings, place)
        case "broken_text":
            from teacher_cache.curation.broken_text import BrokenText

            return BrokenText(settings, place)
        case "length":
            from teacher_cache.curation.length import Length

            return Length(settings, place)
        case "code":
            from teacher_cache.curation.code import Code

            return Code(settings, place)
        case "reward":
            from teacher_cache.curation.reward import Reward

            return Reward(settings, place)
        case "reasoning":
            from teacher_cache.curation.check_reasoning import Reasoning

            return Reasoning(settings, place)
