"""A matrix from top to bottom: check everything → run the cells that are missing, one process each → compare → write.

A cell's files are named by digests of what decides it, so a cell that is there is never measured again, by this matrix
or by another one in the same folder; whatever changes a digest makes another cell. ``matrix.json`` follows from the
cells alone.
"""

import logging
from typing import Any

from schemas.errors import UNEXPECTED, MachineError, UserError
from schemas.matrix_config import MatrixConfig
from trainer.matrix.matrix_plan import MatrixPlan, PlannedCell, plan_matrix, shown_plan
from trainer.matrix.result_files import write_results
from trainer.run.output_files import replace_text
from trainer.run.owner import only_run_in
from trainer.run.part_process import PartFailed, PartProcesses

logger = logging.getLogger(__name__)
COMMAND = "train-student matrix"
CELL = ("train-student", "matrix-cell")


class CellsFailed(UserError):
    """Some cells ended with an error, which each has printed; ``exit_code`` is the first one's."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def plan_of(config: MatrixConfig) -> dict[str, Any]:
    """Check the configuration and say what would run, without writing anything. Raises UserError."""
    return shown_plan(plan_matrix(config))


def run_matrix(config: MatrixConfig) -> dict[str, Any]:
    """Run the cells that are not done, and write the results; returns the summary.

    On SIGINT, SIGTERM or SIGHUP the cell under way is ended, and no other begins: ``stopped_by`` is then the signal's
    number. A cell that fails does not stop the others. Raises UserError; CellsFailed at the end if some failed.
    """
    parts = PartProcesses()
    plan = plan_matrix(config)
    with only_run_in(config.output, COMMAND) as fence, parts.listening():
        logger.info("%s", _said(shown_plan(plan)))
        failures = run_missing(plan, parts)
        done = sum(cell.place.mark.exists() for cell in plan.cells)
        if parts.signal_number is None or done == len(plan.cells):
            write_results(config, plan, fence)
    if failures and parts.signal_number is None:
        names = ", ".join(failures)
        raise CellsFailed(
            f"{len(failures)} of {len(plan.cells)} cells failed ({names}); each has said why; the others are in "
            f"{plan.output}; put that right, and the same command runs only what is missing",
            next(iter(failures.values())),
        )
    return {
        "cells": len(plan.cells),
        "done": done,
        "results": str(plan.output / "matrix.json"),
        "stopped_by": parts.signal_number,
    }


def run_missing(plan: MatrixPlan, parts: PartProcesses) -> dict[str, int]:
    """Run every cell that is not done; exit statuses of those that failed, by name."""
    failures: dict[str, int] = {}
    for number, cell in enumerate(plan.cells, start=1):
        if parts.signal_number is not None:
            break
        if cell.done() is not None:
            continue
        logger.info("cell %d of %d: %s", number, len(plan.cells), cell.name)
        try:
            _run_cell(cell, parts)
        except PartFailed as error:
            if error.exit_code in (MachineError.exit_code, UNEXPECTED):  # else it has printed a line with its name
                logger.error("%s", error)
            failures[cell.name] = error.exit_code
    return failures


def _run_cell(cell: PlannedCell, parts: PartProcesses) -> None:
    cell.place.folder.mkdir(parents=True, exist_ok=True)
    replace_text(cell.place.order, cell.order.model_dump_json(indent=1))
    parts.run((*CELL, str(cell.place.order)), cell.name)


def _said(plan: dict[str, Any]) -> str:
    text = f"{plan['cells']} cells, {plan['done']} done"
    if plan["missing"]:
        text += f", {len(plan['missing'])} to run"
        minutes = plan.get("estimated minutes")
        text += "" if minutes is None else f", about {minutes:g} minutes for those of known cost"
    return text
