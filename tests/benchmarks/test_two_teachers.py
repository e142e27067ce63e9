"""What the experiment with two teachers asks of the commands, and what it makes of a matrix."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks import two_teachers
from benchmarks.support.installed import Finished
from benchmarks.two_teachers import ARMS, BY_FLASH, BY_PRO, EVEN, FLASH, HARD, HELLASWAG, ODD, STUDENT, TEXT
from schemas.cache_config import CacheConfig
from schemas.load import load_config, validate
from schemas.matrix_cell import ItemsFile, MatrixCell, MatrixItem, Measure, ModelEntry, TaskEntry
from schemas.matrix_config import MatrixConfig
from schemas.matrix_file import MatrixFile
from schemas.train_config import TrainConfig
from support.matrix_results import digest, made_teachers
from trainer.matrix.statistics.comparing import compare

NATS = {"PRO": 2.4, "Flash": 2.8, BY_PRO: 3.4, BY_FLASH: 3.5, HARD: 3.3}
RIGHT = {"PRO": 0.5, "Flash": 0.4, BY_PRO: 0.3, BY_FLASH: 0.3, HARD: 0.3}


class Commands:
    """Stands in for the installed commands: checks their configurations, and leaves what ends them."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, Any]] = []

    def __call__(self, command: str, what: str, *words: Any) -> Finished:
        changes = tuple(word for before, word in pairwise(words) if before == "--set")
        if what == "compare":
            self.ran.append((f"{command} {what}", [str(word) for word in words]))
            return Finished(json.dumps(made_teachers().model_dump()), 1.0, 1)
        if what == "matrix":
            return self._keep(command, what, yaml.safe_load(Path(words[0]).read_text()))
        model: Any = CacheConfig if command == "teacher-cache" else TrainConfig
        config = load_config(model, str(words[0]), changes)
        if command == "teacher-cache":
            Path(config.output.path).mkdir(parents=True)
        elif what == "init":
            (Path(config.output) / "student-init").mkdir(parents=True)
        else:
            (Path(config.output) / "final").mkdir(parents=True)
        return self._keep(command, what, config)

    def _keep(self, command: str, what: str, config: Any) -> Finished:
        self.ran.append((f"{command} {what}", config))
        return Finished("{}", 1.0, 1)

    def of(self, name: str) -> list[Any]:
        return [config for command, config in self.ran if command == name]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Commands:
    """Stand-ins, and a folder for the small experiment."""
    stand_in = Commands()
    monkeypatch.setattr(two_teachers, "run_installed", stand_in)
    monkeypatch.setattr(two_teachers, "make_teacher", lambda: Path("runs/teacher"))
    monkeypatch.setattr(two_teachers, "TRY", two_teachers.Size(tmp_path / "try", (0, 1), 2, 2, 4, 4))
    return stand_in


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["two_teachers", "--try", *words])
    return two_teachers.main()


def test_the_commands_of_the_whole_experiment(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"matrix\.json"):  # the stand-in measures nothing
        run(monkeypatch)
    caches = {Path(each.output.path).parent.name: each for each in commands.of("teacher-cache run")}
    assert {name: each.teacher.name for name, each in caches.items()} == {
        "healing": "PRO", "PRO": "PRO", "Flash": "Flash", "held-out": "PRO",
    }  # fmt: skip
    assert caches["PRO"].corpus == caches["Flash"].corpus != caches["held-out"].corpus
    flash, *students = commands.of("train-student run")
    assert (flash.student.from_layers, Path(flash.data.cache).parent.name) == (FLASH, "healing")
    assert commands.of("train-student init")[0].student.from_layers == STUDENT
    assert len(FLASH) == 20
    assert len(STUDENT) == 15
    pro, by_flash, hard = ({each.loop.seed: each for each in students[n::3]} for n in range(3))
    for seed in (0, 1):
        changes = {"data": pro[seed].data, "output": pro[seed].output}
        assert by_flash[seed].model_copy(update=changes) == pro[seed]
        assert hard[seed].model_copy(update={"losses": pro[seed].losses, "output": pro[seed].output}) == pro[seed]
        assert (hard[seed].losses.tla.weight.start, hard[seed].losses.tla.weight.end) == (0, 0)
        assert Path(pro[seed].data.cache).parent.name == "PRO"
        assert Path(by_flash[seed].data.cache).parent.name == "Flash"
    (matrix,) = [validate(MatrixConfig, tree, "matrix") for tree in commands.of("train-student matrix")]
    sides = {side: [m.folder for m in matrix.models if m.arm == side] for side in (BY_PRO, EVEN, ODD)}
    assert not {*sides[EVEN]} & {*sides[ODD]}
    assert {*sides[EVEN], *sides[ODD]} == {*sides[BY_PRO]}


def test_what_is_done_is_not_done_again(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--at-most", "2") == 0
    assert len(commands.of("train-student run")) == 1 + 2
    before = len(commands.ran)
    assert run(monkeypatch, "--arms", HARD) == 0
    assert [command for command, _ in commands.ran[before:]] == ["train-student run"] * 2
    assert run(monkeypatch, "--arms", *ARMS) == 0
    assert len(commands.of("train-student run")) == 1 + 6


def test_the_negative_control_needs_both_kinds_of_seeds(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "--seeds", "0", "2")
    assert "--seeds [0, 2]: give an even and an odd one at least" in capsys.readouterr().err
    assert not commands.ran


def test_no_file_has_two_uses(tmp_path: Path) -> None:
    two_teachers.make_texts(tmp_path, 1000)
    files = [path.name for path in tmp_path.rglob("corpus/*/*")]
    assert len(files) == len({*files})
    assert len(files) > 300


def made_matrix(negative: float = 0.0) -> tuple[MatrixFile, dict[tuple[str, str], list[MatrixItem]]]:
    """Five seeds of every arm; PRO's odd seeds differ from the even ones by ``negative``."""
    rng = np.random.default_rng(0)
    hard_N, easy_N = rng.normal(size=60), rng.random(60)
    models = [
        ("PRO", "", None),
        ("Flash", "", None),
        *((f"{arm} {seed}", arm, seed) for arm in ARMS for seed in range(5)),
    ]
    cells, items = [], {}
    for name, arm, seed in models:
        nats_N = NATS[arm or name] + 0.3 * hard_N + rng.normal(0, 0.02, 60)
        if arm == BY_PRO and seed is not None and seed % 2:
            nats_N += negative
        right_N = (easy_N + rng.normal(0, 0.1, 60) < RIGHT[arm or name]).astype(float)
        scores = {
            TEXT: ("cross_entropy", nats_N, "nats", "distillation"),
            HELLASWAG: ("acc_norm", right_N, "", "quality"),
        }
        copies = (
            [(name, arm)] if arm != BY_PRO else [(name, arm), (f"{name}, again", ODD if seed and seed % 2 else EVEN)]
        )
        for task, (measure, score_N, unit, kind) in scores.items():
            found = [MatrixItem(id=str(n), scores={measure: float(score)}) for n, score in enumerate(score_N)]
            for copy, side in copies:
                items[copy, task] = found
                cells.append(
                    MatrixCell(
                        model=ModelEntry(name=copy, digest=digest(name), arm=side, seed=seed),
                        task=TaskEntry(name=task, digest=digest(task), ability="a", kind=kind),  # type: ignore[arg-type]
                        measures=[
                            Measure(name=measure, value=float(score_N.mean()), unit=unit, higher_is_better=not unit)
                        ],
                        items=ItemsFile(name="i.jsonl", sha256=digest("i"), items=60),
                    )
                )
    pairs = [two_teachers.QUESTION, two_teachers.GAP, two_teachers.NEGATIVE, two_teachers.POSITIVE]
    return MatrixFile(models=[], tasks=[], cells=cells, comparison=compare(cells, items, pairs)), items


def test_the_table_says_what_the_matrix_found() -> None:
    matrix, _ = made_matrix()
    between = made_teachers().model_dump()
    rows = two_teachers.table(matrix, between, [(3, 9, 0.15), (4, 5, 1.0)])
    by_name = {row.what: row for row in rows}
    assert rows[0].what.startswith("held-out text, Flash's students − PRO's: taught by Flash is worse (+0.")
    assert rows[0].value == pytest.approx(0.1, abs=0.01)
    inherited = by_name["share of the teachers' gap that their students inherit"]
    assert inherited.value == pytest.approx(25, abs=3)
    controls = [row for row in rows if row.bar]
    assert [(row.bar, row.holds) for row in controls] == [("interval includes 0", True), ("interval excludes 0", True)]
    assert by_name["… Flash − PRO"].value == -0.25
    (tests,) = [row for row in rows if "McNemar" in row.what]
    assert "3 : 9, 4 : 5" in tests.what
    assert tests.value == pytest.approx(0.3)


def test_a_control_that_fails_misses_its_bar() -> None:
    rows = two_teachers.table(made_matrix(negative=0.1)[0], made_teachers().model_dump(), [(0, 0, 1.0)])
    assert [row.holds for row in rows if row.bar] == [False, True]


def test_mcnemar_seed_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, items = made_matrix()
    only_flash = [MatrixItem(id=str(n), scores={"acc_norm": float(n < 6)}) for n in range(60)]
    only_pro = [MatrixItem(id=str(n), scores={"acc_norm": float(n == 6)}) for n in range(60)]
    items[f"{BY_FLASH} 0", HELLASWAG], items[f"{BY_PRO} 0", HELLASWAG] = only_flash, only_pro
    monkeypatch.setattr(
        "trainer.matrix.cell_files.read_items", lambda output, cell: items[cell.model.name, cell.task.name]
    )
    found = two_teachers.by_seed(Path("matrix"), matrix)
    assert found[0] == (6, 1, pytest.approx(0.125))
    assert len(found) == 5


def test_the_differences_become_a_picture(tmp_path: Path) -> None:
    two_teachers.plot(made_matrix()[0], tmp_path / "two.png")
    with Image.open(tmp_path / "two.png") as image:
        assert image.size == (1210, 352)
