"""Numbers in the plots."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from tools.report import plots

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(str(svg).replace("<svg ", f'<svg xmlns="{SVG[1:-1]}" ', 1))


def test_bars_are_as_high_as_their_share() -> None:
    root = parsed(plots.histogram("h", np.array([1, 0, 3]), 0, 3, "nats"))
    heights = [float(bar.get("height", "")) for bar in root.iter(f"{SVG}rect")]
    assert heights[1] == pytest.approx(3 * heights[0], rel=0.01)
    ticks = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "tick"]
    assert ticks[2] == "80 %"  # the next round number above 75 %
    assert heights[1] == pytest.approx(75 / 80 * (plots.HEIGHT - plots.TOP - plots.BOTTOM), abs=0.1)


def test_names_are_escaped() -> None:
    svg = plots.bars("<t>", [("<script>", 2.0), ("b", 1.0)], "B")
    assert "<script>" not in svg
    texts = [text.text for text in parsed(svg).iter(f"{SVG}text")]
    assert texts == ["<script>", "2.0 B", "b", "1.0 B"]
    assert parsed(svg).get("aria-label") == "<t>"


def test_a_curve_goes_through_its_points() -> None:
    root = parsed(plots.line("l", np.array([0.0, 50, 100]), np.array([0.0, 2, 1]), 100, "x", "y"))
    (curve,) = root.iter(f"{SVG}polyline")
    points = [tuple(map(float, point.split(","))) for point in curve.get("points", "").split()]
    assert points[0] == (plots.LEFT, plots.HEIGHT - plots.BOTTOM)
    assert points[1] == ((plots.LEFT + plots.WIDTH - plots.RIGHT) / 2, plots.TOP)


def test_strips_keep_their_order() -> None:
    svg = plots.strip("s", {"p05": 0.5, "p25": 1, "p50": 2, "p75": 3, "p95": 40}, 4)
    x = {name: list(map(float, re.findall(rf'class="{name}" x1="([\d.]+)" x2="([\d.]+)"', svg)[0])) for name in
         ("whisker", "box")}  # fmt: skip
    assert x["whisker"][0] < x["box"][0] < x["box"][1] < x["whisker"][1] == 117  # the end of the strip


def test_rebinning_loses_nothing() -> None:
    counts = np.arange(1024)
    found = plots.rebinned(counts, 8.0, 0.0, 2.0, 10)
    assert found.sum() == counts.sum()
    assert found[-1] > counts[300:].sum()
    np.testing.assert_allclose(found[0], counts[:26].sum(), rtol=0.1)


@pytest.mark.parametrize("counts", [np.zeros(5, int), np.array([0, 0, 0, 0, 7])])
def test_empty_figures(counts: np.ndarray) -> None:
    parsed(plots.histogram("h", counts, 0, 1, "x"))
    parsed(plots.bars("b", [], "B"))
