"""The items of several models on one task as arrays, paired by id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from schemas.errors import UserError
from schemas.matrix_cell import MatrixItem
from trainer.matrix.statistics.clustered import Floats, Ints, cluster_codes


@dataclass(frozen=True)
class PairedScores:
    """Scores [M models, N items] of the items that all models have, in the order of the first model's file."""

    ids: list[str]
    score_MN: Floats
    cluster_N: Ints

    @property
    def clusters(self) -> int:
        """How many; items without a cluster count as one each."""
        return len({*self.cluster_N.tolist()})


def paired(items: Mapping[str, Sequence[MatrixItem]], measure: str, task: str) -> PairedScores:
    """The scores by ``measure`` of each model's items; an item that lacks it is left out.

    Raises UserError for an id that occurs twice, or that is in one cluster here and in another there.
    """
    scores: list[dict[str, float]] = []
    clusters: dict[str, str] = {}
    for model, of_model in items.items():
        found: dict[str, float] = {}
        for item in of_model:
            if item.id in found:
                raise UserError(f"items of {model} on {task}: id {item.id!r} occurs twice; ids must be unique")
            if clusters.setdefault(item.id, item.cluster) != item.cluster:
                raise UserError(
                    f"items of {model} on {task}: item {item.id!r} is in cluster {item.cluster!r}, for another model "
                    f"in {clusters[item.id]!r}; compare only models that ran the same task"
                )
            if measure in item.scores:
                found[item.id] = item.scores[measure]
        scores.append(found)
    ids = [id_ for id_ in scores[0] if all(id_ in found for found in scores)]
    score_MN = np.array([[found[id_] for id_ in ids] for found in scores], np.float64).reshape(len(scores), len(ids))
    return PairedScores(ids, score_MN, cluster_codes([clusters[id_] for id_ in ids]))
