import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from trainer.run_report.envelopes import Envelope
from trainer.run_report.run_plots import FRAME, curves, limits, step_label, value_label

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: object) -> ET.Element:
    return ET.fromstring(str(svg).replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1))


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path)]


def test_curves_and_envelopes_go_through_their_points() -> None:
    steps, means = np.array([0, 50, 100]), np.array([0.0, 2.0, 4.0])
    found = {
        1: Envelope(steps, means, means, means),
        3: Envelope(steps, means, means - [0, 1, 0], means + np.array([0, 2, 0])),
    }
    root = parsed(curves("<t>", "nats", found, (0, 100)))
    assert root.get("aria-label") == "<t>"
    paths = {path.get("class"): points(path.get("d", "")) for path in root.iter(f"{SVG}path")}
    middle = (FRAME.left + FRAME.width - FRAME.right) / 2, (FRAME.top + FRAME.height - FRAME.bottom) / 2
    assert paths["curve run-1"] == [(FRAME.left, FRAME.height - FRAME.bottom), middle, (FRAME.width - 8, FRAME.top)]
    assert paths["curve run-1"] == paths["curve run-3"]
    assert "envelope run-1" not in paths
    high, low = paths["envelope run-3"][1], paths["envelope run-3"][4]
    assert high == (middle[0], FRAME.top)  # 4 of 4
    assert low[1] == pytest.approx(middle[1] + (FRAME.height - FRAME.top - FRAME.bottom) / 4, abs=0.1)
    assert "cursor" in paths


def test_one_value_is_a_dot() -> None:
    one = np.array([3.0])
    root = parsed(curves("t", "", {2: Envelope(np.array([7]), one, one, one)}, (7, 7)))
    assert [dot.get("class") for dot in root.iter(f"{SVG}circle")] == ["dot run-2"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.1, 0.93, (0, 1)), (5, 5, (0, 8)), (0, 0, (0, 1)), (-3, -3, (-5, -1)), (0.496, 0.81, (0.4, 0.9))],
)
def test_limits(low: float, high: float, expected: tuple[float, float]) -> None:
    found = limits(low, high)
    assert found == pytest.approx(expected)
    assert found[0] <= low <= high <= found[1]


@pytest.mark.parametrize(("low", "high"), [(1e-12, 1e300), (-1e299, 1e299), (1.0, 1.0 + 1e-15), (5e-324, 5e-324)])
def test_limits_of_odd_values_are_apart(low: float, high: float) -> None:
    found = limits(low, high)
    assert np.isfinite(found).all()
    assert found[0] < found[1]


def test_labels() -> None:
    assert [step_label(step) for step in (0, 1, 7.5, 12.5, 999, 1000, 2500, 25_050, 1_500_000)] == [
        "0",
        "1",
        "7.5",
        "12",
        "999",
        "1k",
        "2.5k",
        "25.05k",
        "1.5M",
    ]
    assert [value_label(value) for value in (0, 3e-4, 1e-5, 0.25, 8240, 2e12, -0.5)] == [
        "0", "0.0003", "1e-5", "0.25", "8.24k", "2.0e12", "-0.5",
    ]  # fmt: skip
