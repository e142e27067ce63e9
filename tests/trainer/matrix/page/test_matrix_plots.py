"""Numbers and texts in the plots of a matrix."""

import re
import xml.etree.ElementTree as ET

import pytest

from trainer.matrix.page.matrix_plots import LABEL, VALUE, WIDTH, Bar, Point, bars, difference_strip, scatter


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(str(svg))


def of_class(root: ET.Element, name: str) -> list[ET.Element]:
    return [each for each in root.iter() if each.get("class") == name]


def xs(path: ET.Element) -> tuple[float, float]:
    """Both ends of a whisker."""
    start, end = re.findall(r"M([\d.-]+)|H([\d.-]+)", path.get("d", ""))
    return float(start[0]), float(end[1])


def test_bars_whiskers_and_guessing_share_an_axis() -> None:
    values = [Bar(1, "a", 0.4, "40 %", 0.35, 0.5, [0.3, 0.5]), Bar(2, "b", 0.2, "20 %")]
    root = parsed(bars("t", values, chance=0.25, share=True))
    scale = (WIDTH - LABEL - VALUE) / 0.5  # 0.5 is the next round number
    widths = [float(bar.get("width", "")) for bar in of_class(root, "bar")]
    assert widths == pytest.approx([0.4 * scale, 0.2 * scale], abs=0.1)
    (whisker,) = of_class(root, "whisker")
    assert xs(whisker) == pytest.approx((LABEL + 0.35 * scale, LABEL + 0.5 * scale), abs=0.1)
    assert [float(dot.get("cx", "")) for dot in of_class(root, "seed")] == pytest.approx(
        [LABEL + 0.3 * scale, LABEL + 0.5 * scale], abs=0.1
    )
    (chance,) = of_class(root, "chance")
    assert chance.get("d", "").startswith(f"M{LABEL + 0.25 * scale:.1f} ")
    assert [text.text for text in root.iter("text")] == ["1", "a", "40 %", "2", "b", "20 %"]


def test_shares_end_at_one_and_negative_values_lie_left_of_zero() -> None:
    (whisker,) = of_class(parsed(bars("t", [Bar(1, "a", 0.97, "", 0.9, 1.02)], share=True)), "whisker")
    assert xs(whisker)[1] == WIDTH - VALUE
    root = parsed(bars("t", [Bar(1, "a", -2.0, ""), Bar(2, "b", 1.0, "")]))
    left, right = of_class(root, "bar")
    assert float(left.get("x", "")) == LABEL
    assert float(left.get("x", "")) + float(left.get("width", "")) == pytest.approx(float(right.get("x", "")))
    parsed(bars("t", [Bar(1, "a", 0.0, "0", 0.0, 0.0)]))
    parsed(bars("t", []))


def test_a_strip_has_zero_in_the_middle() -> None:
    root = parsed(difference_strip("", 1.0, -1.0, 2.0, 2.0, "better"))
    assert root.get("class") == "strip better"
    assert root.get("aria-hidden") == "true"
    (axis,), (whisker,), (dot,) = (of_class(root, name) for name in ("axis", "whisker", "estimate"))
    zero = float(re.findall(r"M([\d.]+)", axis.get("d", ""))[0])
    low, high = xs(whisker)
    assert zero - low == pytest.approx((high - zero) / 2) == pytest.approx(float(dot.get("cx", "")) - zero)
    parsed(difference_strip("", 0.0, 0.0, 0.0, 0.0, "unsure"))


def test_points_lie_by_cost_and_quality_and_their_numbers_apart() -> None:
    root = parsed(scatter("t", [Point(1, 100, 0.42), Point(2, 100, 0.415), Point(3, 50, 0.2)], "MB", 1.0))
    dots = of_class(root, "point")
    by_y = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in dots]
    assert by_y == sorted(by_y, key=lambda xy: xy[1])
    assert by_y[0][0] == by_y[1][0] > by_y[2][0]
    names = of_class(root, "name")
    assert [name.text for name in names] == ["1", "2", "3"]
    assert float(names[1].get("y", "")) - float(names[0].get("y", "")) >= 11
    ticks = [text.text for text in of_class(root, "tick")]
    assert ticks[:3] == ["10 %", "30 %", "50 %"]
    parsed(scatter("t", [Point(1, 0, 0.0)], "s"))
    parsed(scatter("t", [Point(1, 5, 1.0)], "s"))


def test_names_are_escaped() -> None:
    attack = "\"'><script>&"
    for svg in (bars(attack, [Bar(1, attack, 1, attack)]), scatter(attack, [Point(1, 1, 1)], attack)):
        assert "<script>" not in svg
        assert parsed(svg).get("aria-label") == attack
        assert attack in [text.text for text in parsed(svg).iter("text")]
