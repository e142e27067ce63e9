import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.matrix.statistics.clustered import (
    cluster_codes,
    clustered_mean,
    correlation_within,
    degrees_of_freedom,
    variance_of_mean,
)

sizes = st.lists(st.integers(1, 6), min_size=2, max_size=7)


def scores(of_sizes: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    cluster_N = np.repeat(np.arange(len(of_sizes)), of_sizes)
    return rng.normal(1, 1, len(of_sizes))[cluster_N] + rng.normal(0, 1, len(cluster_N)), cluster_N


@given(sizes)
def test_variance_and_degrees_of_freedom_are_those_of_cr2_in_matrices(of_sizes: list[int]) -> None:
    """Bell and McCaffrey's estimator for a regression on a constant, with A_g = (I - H_gg)^(-1/2) by eigenvectors."""
    value_N, cluster_N = scores(of_sizes)
    n, error_N = len(value_N), value_N - value_N.mean()
    correlation = correlation_within(error_N, cluster_N)
    working_NN = (cluster_N[:, None] == cluster_N) * correlation + np.eye(n) * (1 - correlation)
    projection_NN = np.eye(n) - np.full((n, n), 1 / n)
    variance, columns = 0.0, []
    for code in range(len(of_sizes)):
        inside_N = cluster_N == code
        eigenvalues, vectors = np.linalg.eigh(np.eye(of_sizes[code]) - 1 / n)
        adjust = vectors @ np.diag(eigenvalues**-0.5) @ vectors.T
        variance += float((adjust @ error_N[inside_N]).sum() / n) ** 2
        columns.append(projection_NN[:, inside_N] @ adjust @ np.full(of_sizes[code], 1 / n))
    quadratic = np.stack(columns, 1).T @ working_NN @ np.stack(columns, 1)
    df = np.trace(quadratic) ** 2 / np.trace(quadratic @ quadratic)
    found = clustered_mean(value_N, cluster_N)
    assert found.mean == pytest.approx(value_N.mean())
    assert found.variance == pytest.approx(variance, rel=1e-9)
    assert found.df == pytest.approx(df, rel=1e-9)


def test_items_without_clusters_give_the_textbook_standard_error() -> None:
    value_N, _ = scores([1] * 50)
    found = clustered_mean(value_N, np.arange(50))
    assert found.variance == pytest.approx(value_N.var(ddof=1) / 50)
    assert found.df == pytest.approx(49)


def test_clusters_of_equal_size_give_that_of_their_means() -> None:
    value_N, cluster_N = scores([4] * 9)
    found = clustered_mean(value_N, cluster_N)
    assert found.variance == pytest.approx(value_N.reshape(9, 4).mean(axis=1).var(ddof=1) / 9)
    assert found.df == pytest.approx(8)
    assert found.clusters == 9


def test_millers_double_sum_is_the_variance_but_for_the_factor_of_few_clusters() -> None:
    """arXiv 2411.00640: the sum over pairs of one cluster of products of errors, over n²."""
    value_N, cluster_N = scores([5] * 30)
    error_N = value_N - value_N.mean()
    double_sum = sum(error_N[i] * error_N[j] for i in range(150) for j in range(150) if cluster_N[i] == cluster_N[j])
    assert variance_of_mean(error_N, cluster_N) == pytest.approx(double_sum / 150**2 * 30 / 29)


def test_unequal_clusters_that_correlate_have_fewer_degrees_of_freedom() -> None:
    size_G = np.array([1] * 10 + [50])
    independent = degrees_of_freedom(size_G, size_G.astype(float))
    together = degrees_of_freedom(size_G, size_G.astype(float) ** 2)
    assert together < independent < 10


def test_correlation_within_clusters() -> None:
    cluster_N = np.repeat(np.arange(40), 5)
    assert correlation_within(np.repeat(np.tile([1.0, -1.0], 20), 5), cluster_N) == 1
    assert correlation_within(np.tile([2.0, -2.0, 1.0, -1.0, 0.0], 40), cluster_N) == 0
    assert correlation_within(np.zeros(200), cluster_N) == 0


def test_items_without_a_cluster_are_one_each() -> None:
    assert cluster_codes(["law", "", "art", "law", ""]).tolist() == [0, 1, 2, 0, 3]
    assert cluster_codes(["", "", ""]).tolist() == [0, 1, 2]


def test_one_cluster_alone_is_taken_as_independent_items() -> None:
    assert cluster_codes(["law"] * 3).tolist() == [0, 1, 2]
