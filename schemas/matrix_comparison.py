"""``COMPARISON.json``: which differences between the models of a matrix are real, for the report and for programs.

Intervals are at 95 %. Everything that people read (``words``) is made in one place,
``trainer/matrix/statistics/wording.py``, from the numbers beside it.
"""

from typing import Literal

from pydantic import Field

from schemas.matrix_cell import Kind
from schemas.strict import Sha256, Strict

Verdict = Literal["better", "worse", "cannot tell"]
Covers = Literal["nothing", "items", "seeds and items"]


class Side(Strict):
    """What is compared: an arm, whose students differ by training seed only, or a model on its own."""

    name: str  # of the arm, or of the model
    models: list[str] = Field(min_length=1)  # names, in the order of their seeds
    seeds: list[int] = Field(default_factory=list)  # [] for a model on its own
    parameters: int | None = None
    bytes: int | None = None  # of one model's weights on disk


class TaskColumn(Strict):
    """A task and its compared measure, the first of its cells."""

    name: str
    digest: Sha256
    ability: str
    kind: Kind
    measure: str
    unit: str  # "" for shares in [0, 1], which words show in percent and points
    higher_is_better: bool
    chance: float | None = None
    items: int = Field(ge=0)  # that every model has; 0: none, as of speed and size
    clusters: int = Field(ge=0)


class Estimate(Strict):
    """One measure of a model, or of a side over its seeds, on a task."""

    name: str  # of the model or side
    task: str
    measure: str
    unit: str
    higher_is_better: bool
    value: float
    low: float | None = None  # None: nothing to compute an interval from
    high: float | None = None
    covers: Covers  # what the interval allows for: other items of this kind; also other training seeds
    items: int = Field(ge=0)
    clusters: int = Field(ge=0)
    seeds: int = Field(ge=1)
    method: str  # in words
    words: str  # "61.2 % (58.9 … 63.5)"


class PairResult(Strict):
    """Side ``a`` against side ``b`` on a task, by the task's compared measure."""

    a: str
    b: str
    task: str
    difference: float  # a - b, in the measure's unit, whichever is better
    low: float
    high: float
    p: float = Field(ge=0, le=1)  # two-sided
    p_holm: float = Field(ge=0, le=1)  # adjusted for all pairs and tasks of the comparison
    verdict: Verdict  # of a: "better" respects ``higher_is_better``
    words: str  # "A is better (+2.1 points, 95 % interval 0.8 … 3.4, p = 0.002 after Holm)"
    covers: Covers
    method: str  # in words
    items: int = Field(ge=1)  # that both have
    clusters: int = Field(ge=1)
    seeds_a: int = Field(ge=1)
    seeds_b: int = Field(ge=1)
    seeds_paired: bool  # both have the same seeds, compared one by one
    detectable: float = Field(ge=0)  # smallest difference found with a power of 80 % at this noise, two-sided 5 %
    items_needed: int | None = None  # with these seeds, for the difference seen; None: not needed, or in vain
    seeds_needed: int | None = None  # with these items; also None for models on their own
    a_better: int = Field(ge=0)  # items, by the mean over seeds
    b_better: int = Field(ge=0)
    changed: list[str] = Field(default_factory=list)  # ids of items that differ most, at most ``CHANGED``


class MatrixComparison(Strict):
    """The whole comparison. Pairs are of tasks with items; estimates are of all cells."""

    format: Literal[1] = 1
    confidence: float = 0.95
    power: float = 0.8
    tests: int = Field(ge=0)  # the family that p_holm is adjusted for: pairs × tasks
    sides: list[Side]
    tasks: list[TaskColumn]
    cells: list[Estimate]  # of every model, task and measure
    estimates: list[Estimate]  # of every side and task, by its compared measure
    pairs: list[PairResult]
    notes: list[str] = Field(default_factory=list)  # what a reader must know: "x has one seed: …"


CHANGED = 50
"""Most items that ``PairResult.changed`` names."""
