"""Sides of a comparison: arms of students that differ by their training seed only, and models on their own."""

from collections.abc import Collection, Sequence

from schemas.errors import UserError
from schemas.matrix_cell import ModelEntry
from schemas.matrix_comparison import Side


def sides_of(models: Sequence[ModelEntry]) -> list[Side]:
    """The sides of a matrix in the order of their first models; a model may come many times.

    Raises UserError for a model that is described twice and differently, for an arm of several models without seeds of
    their own, and for an arm named as a model on its own is.
    """
    named: dict[str, ModelEntry] = {}
    for model in models:
        if named.setdefault(model.name, model) != model:
            raise UserError(f"model {model.name}: its cells differ in digest, arm, seed or size; evaluate it again")
    arms: dict[tuple[str, bool], list[ModelEntry]] = {}
    for model in named.values():
        arms.setdefault((model.arm or model.name, bool(model.arm)), []).append(model)
    names = [name for name, _ in arms]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{min(twice)}: the name of an arm and of a model on its own; rename one of them")
    return [_side(name, arm) for (name, _), arm in arms.items()]


def only(side: Side, models: Collection[str]) -> Side | None:
    """The side without the models that are not among ``models``; None if none is left."""
    kept = [index for index, name in enumerate(side.models) if name in models]
    if not kept:
        return None
    seeds = [side.seeds[index] for index in kept] if side.seeds else []
    return side.model_copy(update={"models": [side.models[index] for index in kept], "seeds": seeds})


def same_seeds(a: Side, b: Side) -> bool:
    """Whether both arms have the same two or more seeds: their students are then compared seed by seed."""
    return len(a.seeds) > 1 and a.seeds == b.seeds


def notes_on_seeds(sides: Sequence[Side]) -> list[str]:
    """What the number of seeds of each arm means for its intervals."""
    notes = []
    for side in sides:
        if len(side.seeds) == 1:
            notes.append(
                f"arm {side.name} has one seed: its intervals allow for other items, not for another training, "
                "and say nothing of the recipe behind it"
            )
        elif len(side.seeds) == 2:
            notes.append(f"arm {side.name} has two seeds: its intervals may cover as little as 91 %; train a third")
    return notes


def _side(name: str, arm: list[ModelEntry]) -> Side:
    seeds = [model.seed for model in arm if model.seed is not None]
    if len(arm) > 1 and len({*seeds}) < len(arm):
        seen = ", ".join(f"{model.name} {model.seed}" for model in arm)
        raise UserError(f"arm {name}: its seeds are {seen}; every model of an arm needs one of its own")
    ordered = sorted(arm, key=lambda model: model.seed or 0)
    first = ordered[0]
    return Side(
        name=name,
        models=[model.name for model in ordered],
        seeds=sorted(seeds) if first.arm else [],
        parameters=first.parameters,
        bytes=first.bytes,
    )
