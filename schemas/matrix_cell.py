"""``CELL.json``: the result of one cell of a matrix, one model on one task; its items lie beside it in a JSONL file."""

from typing import Literal

from pydantic import Field

from schemas.strict import Sha256, Strict

Kind = Literal["quality", "distillation", "size", "speed"]


class Measure(Strict):
    """One figure of a cell."""

    name: str  # "accuracy", "pass@1", "kl", "seconds p50"
    value: float
    unit: str = ""  # "nats", "s", "bytes"; "" for shares in [0, 1]
    higher_is_better: bool = True
    chance: float | None = None  # what guessing gives, if known


class ItemsFile(Strict):
    """The JSONL file of ``MatrixItem`` lines, in the order of their ids."""

    name: str  # file name, in the cell's own folder
    sha256: Sha256
    items: int = Field(ge=0)


class MatrixItem(Strict):
    """What one item of a task gave: a question, a problem, a document."""

    id: str  # the same for every model
    cluster: str = ""  # items of one cluster are not independent: a subject, a source document
    scores: dict[str, float]  # by measure; the cell's value is their mean
    prompt: str = ""  # for people, shortened
    answer: str = ""  # the model's, shortened
    wanted: str = ""  # shortened


class ModelEntry(Strict):
    """A model of the matrix."""

    name: str
    digest: Sha256  # of its weights, configuration and tokenizer
    arm: str = ""  # students of one arm differ by training seed only; "" for a model on its own
    seed: int | None = None
    parameters: int | None = None
    bytes: int | None = None  # of its weights on disk


class TaskEntry(Strict):
    """A task of the matrix, with what decides its result."""

    name: str
    digest: Sha256  # of settings, data and the versions of the programs that run it
    ability: str  # "knowledge", "reasoning", "code", "summaries", "long context", "speed", "teacher"
    kind: Kind = "quality"


class MatrixCell(Strict):
    """A whole cell. The first measure is the one that is compared."""

    format: Literal[1] = 1
    model: ModelEntry
    task: TaskEntry
    measures: list[Measure] = Field(min_length=1)
    items: ItemsFile | None = None  # None: speed, size
    versions: dict[str, str] = Field(default_factory=dict)  # of the programs that ran it
