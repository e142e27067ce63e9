"""What the experiment with another tokenizer makes of its students' figures."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.cross_tokenizer import ARMS, KINDS, OTHER, plot, shares, table

BITS = {
    "own, hard labels": 2.0,
    "own, distilled": 1.5,
    "own cut, hard labels": 2.3,
    "hard labels": 2.2,
    "ULD": 2.1,
    "GOLD": 2.3,
    "strict": 2.0,
}
MEASURED = {
    arm: [{"bits": {kind: BITS.get(arm, 1.9) + 0.1 * seed for kind in KINDS}} for seed in range(3)] for arm in ARMS
}


def test_shares_are_of_the_own_tokenizers_gain() -> None:
    share, by_seed = shares(MEASURED, "strict")
    assert share == pytest.approx(40)
    assert shares(MEASURED, "strict", "own cut")[0] == pytest.approx(50)
    assert by_seed == pytest.approx([40, 40, 40])
    assert shares(MEASURED, "GOLD")[0] == pytest.approx(-20)


def test_bars_compare_the_arms() -> None:
    before = dict.fromkeys(("teacher", OTHER), dict.fromkeys(KINDS, 3.0))
    assert [row.holds for row in table(before, MEASURED) if row.bar] == [True] * 4
    rows = table(before, MEASURED | {"ULD": MEASURED["own, distilled"], "all": MEASURED["GOLD"]})
    assert [row.holds for row in rows if row.bar] == [True, False, False, True]


def test_the_students_become_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "arms.png"
    plot(MEASURED, picture)
    with Image.open(picture) as image:
        assert image.size == (1210, 440)
