"""Local steps that apply to some layers of the data mix."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from schemas.errors import UserError
from teacher_cache.curation.curation_step import LocalStep, StepPlace
from teacher_cache.curation.record import Record


class LayerStep(LocalStep):
    """A local step that leaves records of other layers as they are."""

    def __init__(self, layers: Iterable[str] | None, place: StepPlace) -> None:
        """``layers``: None for all. Raises UserError if no source has one of them."""
        self._layers = known_layers(layers, place)

    def reasons(self, records: Sequence[Record]) -> list[str]:
        """See ``LocalStep``."""
        judged = [record for record in records if record.layer in self._layers]
        if len(judged) == len(records):
            return self.judge(records)
        found = iter(self.judge(judged) if judged else [])
        return [next(found) if record.layer in self._layers else "" for record in records]

    @abstractmethod
    def judge(self, records: Sequence[Record]) -> list[str]:
        """As ``reasons``, for records that the step applies to."""


def known_layers(layers: Iterable[str] | None, place: StepPlace) -> frozenset[str]:
    """The layers that a step applies to. Raises UserError if no source has one of them."""
    chosen = frozenset(place.layers if layers is None else layers)
    if unknown := sorted(chosen - {*place.layers}):
        raise UserError(
            f"{place.key}.layers: no source has the layer {unknown[0]}; there are {', '.join(sorted(place.layers))}"
        )
    return chosen
