"""Local steps that apply to some layers of the data mix."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from schemas.errors import UserError
from teacher_cache.curation.curation_step import LocalStep, StepPlace
from teacher_cache.curation.record import Record

Found = TypeVar("Found")


class LayerStep(LocalStep):
    """A local step that leaves records of other layers as they are."""

    def __init__(self, layers: Iterable[str] | None, place: StepPlace) -> None:
        """``layers``: None for all. Raises UserError if no source has one of them."""
        self._layers = known_layers(layers, place)

    def changed(self, records: Sequence[Record]) -> list[Record]:
        """See ``LocalStep``."""
        return self._of_layers(records, self.flagged, list(records))

    def reasons(self, records: Sequence[Record]) -> list[str]:
        """See ``LocalStep``."""
        return self._of_layers(records, self.judge, [""] * len(records))

    def flagged(self, records: Sequence[Record]) -> list[Record]:
        """As ``changed``, for records that the step applies to."""
        return list(records)

    @abstractmethod
    def judge(self, records: Sequence[Record]) -> list[str]:
        """As ``reasons``, for records that the step applies to."""

    def _of_layers(
        self, records: Sequence[Record], apply: Callable[[Sequence[Record]], list[Found]], others: list[Found]
    ) -> list[Found]:
        """What ``apply`` finds of the records that the step applies to, ``others`` in place of the rest."""
        places = [place for place, record in enumerate(records) if record.layer in self._layers]
        for place, found in zip(places, apply([records[place] for place in places]) if places else [], strict=True):
            others[place] = found
        return others


def known_layers(layers: Iterable[str] | None, place: StepPlace) -> frozenset[str]:
    """The layers that a step applies to. Raises UserError if no source has one of them."""
    chosen = frozenset(place.layers if layers is None else layers)
    if unknown := sorted(chosen - {*place.layers}):
        raise UserError(
            f"{place.key}.layers: no source has the layer {unknown[0]}; there are {', '.join(sorted(place.layers))}"
        )
    return chosen
