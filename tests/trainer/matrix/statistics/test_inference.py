import numpy as np
import pytest

from trainer.matrix.statistics.inference import difference, mean_over
from trainer.matrix.statistics.right_or_wrong import mcnemar_p, paired_share_interval, share_interval

RNG = np.random.default_rng(0)
RIGHT = (RNG.random((2, 60)) < 0.6).astype(float)
REAL = RNG.normal(0, 1, (2, 60))
ALONE, GROUPED, FEW = np.arange(60), np.arange(60) // 3, np.arange(60) // 10


@pytest.mark.parametrize(
    ("score_SN", "cluster_N", "method"),
    [
        (RIGHT, ALONE, "exact McNemar; interval of Bonett and Price"),
        (RIGHT, GROUPED, "Student's t over clusters"),
        (REAL, ALONE, "studentised bootstrap over items"),
        (REAL, GROUPED, "studentised bootstrap over clusters"),
        (REAL, FEW, "Student's t over clusters"),
    ],
)
def test_the_scores_choose_the_method(score_SN: np.ndarray, cluster_N: np.ndarray, method: str) -> None:
    found = difference(score_SN[:1], score_SN[1:], cluster_N, seeds_paired=False)
    assert (found.method, found.covers) == (method, "items")
    assert found.value == pytest.approx(score_SN[0].mean() - score_SN[1].mean())
    assert found.low < found.value < found.high
    assert (found.p <= 0.05) == (not found.low <= 0 <= found.high)


def test_several_seeds_cover_both_levels() -> None:
    paired = difference(REAL, RIGHT, ALONE, seeds_paired=True)
    apart = difference(REAL, RIGHT, ALONE, seeds_paired=False)
    given = difference(REAL, RIGHT[:1], GROUPED, seeds_paired=False)
    assert {each.covers for each in (paired, apart, given)} == {"seeds and items"}
    assert [each.method for each in (paired, apart, given)] == [
        "seeds × items, Student's t weighted as Cochran's, seeds paired",
        "seeds × items, Student's t weighted as Cochran's",
        "seeds × clusters, Student's t weighted as Cochran's",
    ]
    assert [paired.value, apart.value] == pytest.approx([REAL.mean() - RIGHT.mean()] * 2)


def test_shared_noise_of_seeds_goes_away_if_they_are_paired() -> None:
    luck_S1 = RNG.normal(0, 1, (5, 1))
    a_SN = RNG.normal(0.3, 0.1, (5, 60)) + luck_S1
    b_SN = RNG.normal(0.0, 0.1, (5, 60)) + luck_S1
    paired, apart = (difference(a_SN, b_SN, ALONE, seeds_paired) for seeds_paired in (True, False))
    assert paired.high - paired.low < 0.1 * (apart.high - apart.low)
    assert paired.p < 0.001 < 0.05 < apart.p


def test_mcnemar_and_its_interval() -> None:
    only_a, only_b = int((RIGHT[0] > RIGHT[1]).sum()), int((RIGHT[1] > RIGHT[0]).sum())
    found = difference(RIGHT[:1], RIGHT[1:], ALONE, seeds_paired=False)
    assert (found.low, found.high) == paired_share_interval(only_a, only_b, 60)
    assert found.p == mcnemar_p(only_a, only_b)


def test_models_that_answer_alike_do_not_differ() -> None:
    for score_SN in (RIGHT, REAL):
        for cluster_N in (ALONE, GROUPED, FEW):
            found = difference(score_SN[:1], score_SN[:1], cluster_N, seeds_paired=False)
            assert (found.value, found.p) == (0, 1)
            assert found.low <= 0 <= found.high
    found = difference(REAL, REAL, ALONE, seeds_paired=True)
    assert (found.low, found.high, found.p) == (0, 0, 1)


def test_two_items_that_differ_have_students_interval() -> None:
    """A seventh of the resamples holds neither of them, and has no standard error."""
    a_SN = np.full((1, 60), 0.5)
    a_SN[0, :2] = (0.7, 1.0)
    found = difference(a_SN, np.full((1, 60), 0.5), ALONE, seeds_paired=False)
    assert found.method == "Student's t over items"
    assert np.isfinite([found.low, found.high]).all()
    assert found.p > 0.05


def test_a_share_has_wilsons_interval() -> None:
    found = mean_over(RIGHT[:1], ALONE)
    share = RIGHT[0].mean()
    low, high = share_interval(share, 59, 1.959964)  # n - 1: the variance has the factor n / (n - 1)
    assert (found.value, found.low, found.high) == pytest.approx((share, low, high), abs=1e-6)
    assert found.method == "Wilson over items"


def test_a_share_in_clusters_that_agree_counts_clusters() -> None:
    """Ten clusters of six equal answers are ten answers, with Student's quantile."""
    right_N = np.repeat([1.0, 1, 1, 0, 1, 0, 1, 1, 0, 1], 6)
    found = mean_over(right_N[None], np.arange(60) // 6)
    assert (found.low, found.high) == pytest.approx(share_interval(0.7, 9, 2.262157), abs=1e-6)
    assert found.method == "Wilson over clusters"


@pytest.mark.parametrize("cluster_N", [ALONE, FEW])
def test_all_right_is_not_certainty(cluster_N: np.ndarray) -> None:
    found = mean_over(np.ones((1, 60)), cluster_N)
    assert found.high == 1
    assert found.low == pytest.approx(60 / (60 + 1.96**2) if cluster_N is ALONE else 6 / (6 + 2.5706**2), abs=1e-3)


def test_means_of_real_scores_and_of_seeds() -> None:
    assert mean_over(REAL[:1], ALONE).method == "studentised bootstrap over items"
    assert mean_over(REAL, ALONE).method == "seeds × items, Student's t weighted as Cochran's"
