from pathlib import Path

from PIL import Image

from benchmarks.training_curves import PANELS, draw, trailing_means


def test_means_are_of_each_value_and_those_before_it() -> None:
    assert trailing_means([4.0, 2.0, 0.0, 6.0], steps=2) == [4.0, 3.0, 1.0, 3.0]


def test_a_runs_metrics_become_a_picture(tmp_path: Path) -> None:
    terms = {name: 1.0 for name in PANELS} | {f"{name}_weight": 0.5 for name in PANELS}
    metrics = [{"step": step, **terms} for step in range(1, 5)] + [{"step": 4, "eval_kl": 0.7}]
    picture = tmp_path / "curves.png"
    draw(metrics, picture)
    with Image.open(picture) as image:
        assert image.size == (1100, 550)
