"""Continue a curation that stopped after its later steps were changed: a mix that lacked tokens, say.

What the steps before the first changed one have made stays; what later ones made is removed. That is possible as long
as the records that the changed step starts from are there: until the next stage and its decision were complete.
"""

from collections.abc import Sequence

from schemas.curated_manifest import CuratedManifest
from teacher_cache.curation import stages
from teacher_cache.curation.stages import ReadMark, Stage
from teacher_cache.shards.storage import Storage


def first_changed(present: CuratedManifest, wanted: CuratedManifest) -> int:
    """Number of the first step that differs, in settings or in what its files hold."""
    before, now = (list(zip(one.steps, one.step_fingerprints, strict=True)) for one in (present, wanted))
    same = [old == new for old, new in zip(before, now, strict=False)]
    return same.index(False) if False in same else len(same)


def forget_from(scratch: Storage, changed: int, was_global: bool, wanted: Sequence[Stage]) -> bool:
    """Remove what step number ``changed`` and later ones have made; False, with nothing removed, if it is too late.

    was_global: whether it was a global step before; wanted: the stages as they are to be.
    """
    names = scratch.names()
    stage = next((one for one in wanted if changed in one.local or changed == one.following), wanted[-1])
    only_compared = stage.following == changed and was_global  # what reached it is still right
    base = stage.number if only_compared else stage.number - 1
    if stages.READ in names:
        chunks = range(stages.read_small(ReadMark, scratch, stages.READ).chunks)
        marks = [stages.read_mark(scratch, base, chunk) for chunk in chunks if stages.mark_of(base, chunk) in names]
        if len(marks) == len(chunks) and any(
            mark.file is not None and stages.records_name(base, chunk) not in names for chunk, mark in enumerate(marks)
        ):
            return False
    for name in names:
        number = stages.stage_of(name)
        if number is not None and (number > base or (number == base and stages.is_comparison(name))):
            scratch.delete(name)
    return True
