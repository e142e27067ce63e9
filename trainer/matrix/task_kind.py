"""What a kind of task has to offer the matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.matrix_cell import Kind, MatrixItem, Measure

GET_VLLM = "pip install 'offline-distillation[teacher]', on GPUs 'offline-distillation[gpu]'"


@dataclass(frozen=True)
class CellResult:
    """What a cell measured. The first measure is the one that is compared."""

    measures: Sequence[Measure]
    items: Sequence[MatrixItem] | None = None  # None: speed, size


@dataclass(frozen=True)
class TaskKind:
    """One kind of task. ``T`` is its settings, a subclass of ``MatrixTask``.

    Everything but ``run`` is called before anything runs, in the matrix's own process, and loads no model library.
    """

    check: Callable[[Any], None]
    """``check(T)``: raise UserError if a data file or a package is missing, saying how to get it."""

    data: Callable[[Any], dict[str, str]]
    """``data(T)``: sha256 of the content of each data file that decides a result, by what it is."""

    run: Callable[..., CellResult]
    """``run(T, model, backends)``: measure the model, in the cell's own process. May raise UserError.

    With ``continues`` there is a fourth argument: a folder for parts of its work. What a killed process left in it is
    there again; it is removed once the cell is written.
    """

    programs: Callable[[Any], Sequence[str]] = lambda _: ("torch", "transformers")
    """``programs(T)``: the distributions that run it, whose versions decide a result."""

    backends: Callable[[Any], Sequence[str]] = lambda _: ("hf",)
    """``backends(T)``: those whose settings decide a result."""

    measures: Kind = "quality"
    continues: bool = False
    revision: int = 1
    """To be raised when a change of the code changes results, which are then measured again."""
