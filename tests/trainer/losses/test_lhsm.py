import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.cache_config import CaptureConfig
from schemas.train_config import LhsmConfig
from support.tensor_memory import TensorMemory
from teacher_cache.signals.hidden.capture import quantise
from trainer.losses import lhsm
from trainer.losses.lhsm import EPSILON, HiddenMaps, layer_norm, lhsm_per_row
from trainer.student.recorder import Recorded

NAMES = ("values", "scales", "outlier_index", "outliers")
DIRECTIONS = ["teacher_to_student", "student_to_teacher"]


def normalised(values: list[float]) -> list[float]:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((x - mean) ** 2 for x in values) / len(values)
    return [(x - mean) / math.sqrt(variance + EPSILON) for x in values]


def reference(student: np.ndarray, teacher: np.ndarray, weight: np.ndarray, direction: str) -> np.ndarray:
    """The definition, one row and one feature at a time in float64."""
    source, target = (teacher, student) if direction == "teacher_to_student" else (student, teacher)
    values = []
    for from_row, to_row in zip(source.tolist(), target.tolist(), strict=True):
        normal = normalised(from_row)
        mapped = normalised([math.fsum(w * x for w, x in zip(row, normal, strict=True)) for row in weight.tolist()])
        squares = [(a - b) ** 2 for a, b in zip(mapped, normalised(to_row), strict=True)]
        values.append(math.fsum(squares) / len(squares))
    return np.array(values)


def random_problem(n: int, e: int, d: int, direction: str, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    student = normal(n, e) + normal(n, 1)
    teacher = normal(n, d) * (3 * normal(d)).exp()  # a few channels are orders of magnitude larger
    return student, teacher, normal(*((e, d) if direction == "teacher_to_student" else (d, e)))


@st.composite
def problems(draw: st.DrawFn):
    direction = draw(st.sampled_from(DIRECTIONS))
    n, e, d = draw(st.integers(0, 4)), draw(st.integers(2, 12)), draw(st.integers(2, 12))
    student, teacher, weight = random_problem(n, e, d, direction, draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([1e-4, 0.02, 1.0, 100.0]))
    return student * scale, teacher * draw(st.sampled_from([0.02, 1.0, 100.0])), weight, direction


@given(problems())
@settings(deadline=None, max_examples=80)
def test_equals_the_definition(problem) -> None:
    student, teacher, weight, direction = problem
    value = lhsm_per_row(student, teacher, weight, direction)
    expected = reference(student.numpy(), teacher.numpy(), weight.numpy(), direction)
    assert value.shape == (len(student),)
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-6, atol=1e-12)
    assert (value >= 0).all()
    assert (value <= 4).all()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_float32_is_close_to_the_definition(direction: str) -> None:
    student, teacher, weight = random_problem(50, 24, 40, direction)
    value = lhsm_per_row(student.float(), teacher.float(), weight.float(), direction)
    expected = reference(student.numpy(), teacher.numpy(), weight.numpy(), direction)
    np.testing.assert_allclose(value.numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_half_precision_is_computed_in_float32(direction: str) -> None:
    student, teacher, weight = random_problem(6, 12, 20, direction)
    student, teacher, weight = student.bfloat16(), teacher.half(), weight.float()
    value = lhsm_per_row(student, teacher, weight, direction)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, lhsm_per_row(student.float(), teacher.float(), weight, direction))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("e", "d"), [(5, 8), (8, 5), (6, 6)])
def test_gradient_for_student_and_map(direction: str, e: int, d: int) -> None:
    student, teacher, weight = random_problem(3, e, d, direction)
    inputs = (student.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda s, w: lhsm_per_row(s, teacher, w, direction), inputs)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_finite_at_a_zero_map_and_a_zero_student(direction: str, dtype: torch.dtype) -> None:
    student, teacher, weight = (x.to(dtype) for x in random_problem(3, 5, 8, direction))
    student[0] = 0
    for tried in (torch.zeros_like(weight), weight):
        inputs = (student.clone().requires_grad_(), tried.clone().requires_grad_())
        value = lhsm_per_row(inputs[0], teacher, inputs[1], direction)
        assert torch.isfinite(value).all()
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value.sum(), inputs))


@given(st.sampled_from(DIRECTIONS), st.floats(-1.5, 4), st.floats(-1.5, 4), st.integers(0, 100))
@settings(deadline=None, max_examples=60)
def test_scaling_map_or_student_does_not_lower_it(
    direction: str, log_map: float, log_student: float, seed: int
) -> None:
    student, teacher, weight = random_problem(4, 16, 24, direction, seed)
    before = lhsm_per_row(student, teacher, weight, direction)
    after = lhsm_per_row(student * 10**log_student, teacher, weight * 10**log_map, direction)
    torch.testing.assert_close(after, before, rtol=0.01, atol=0.01)  # epsilon / 10^-3 at the smallest scale


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradient_is_orthogonal_to_map_and_student(direction: str) -> None:
    student, teacher, weight = random_problem(4, 16, 24, direction)
    inputs = (student.requires_grad_(), weight.requires_grad_())
    gradients = torch.autograd.grad(lhsm_per_row(student, teacher, weight, direction).sum(), inputs)
    for tensor, gradient in zip(inputs, gradients, strict=True):
        cosine = (tensor * gradient).sum() / (tensor.norm() * gradient.norm())
        assert gradient.norm() > 0.01
        assert abs(cosine.item()) < 1e-5


def test_reference_points() -> None:
    student, teacher = (random_problem(200, 256, 256, "teacher_to_student", seed)[0] for seed in (0, 1))
    student = layer_norm(student)
    eye = torch.eye(256, dtype=torch.float64)
    same, opposite, independent = (
        lhsm_per_row(student, other, eye, "teacher_to_student").mean().item()
        for other in (7 * student + 3, -student, teacher)
    )
    assert same == pytest.approx(0, abs=1e-6)
    assert opposite == pytest.approx(4, abs=1e-4)
    assert independent == pytest.approx(2, abs=0.05)


def test_layer_norm_is_torchs_without_affine() -> None:
    hidden = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)) * 4 + 2
    module = torch.nn.LayerNorm(9, eps=1e-6, elementwise_affine=False)
    torch.testing.assert_close(layer_norm(hidden), module(hidden))
    assert layer_norm(hidden.bfloat16()).dtype == torch.float32
    assert layer_norm(hidden.double()).dtype == torch.float64


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("e", "d"), [(6, 10), (10, 6), (7, 7)])
def test_maps_start_as_isometries_of_the_smaller_space(direction: str, e: int, d: int) -> None:
    maps = HiddenMaps(3, e, d, direction, seed=1)
    torch.testing.assert_close(maps.norms(), torch.ones(3))
    for weight in maps.weights:
        assert weight.shape == ((e, d) if direction == "teacher_to_student" else (d, e))
        assert weight.requires_grad
        gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
        torch.testing.assert_close(gram.detach(), torch.eye(min(e, d)), rtol=0, atol=1e-5)
        if e == d:
            assert torch.equal(weight, torch.eye(e))


def test_maps_depend_on_the_seed_only() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = HiddenMaps(2, 4, 6, "teacher_to_student", seed=1)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    again, other = (HiddenMaps(2, 4, 6, "teacher_to_student", seed=seed) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.weights, again.weights, strict=True))
    assert not torch.equal(first.weights[0], other.weights[0])
    assert not torch.equal(first.weights[0], first.weights[1])


def test_maps_use_the_pairs_own_weight_and_log_its_norm() -> None:
    student, teacher, _ = random_problem(4, 5, 8, "student_to_teacher")
    maps = HiddenMaps(2, 5, 8, "student_to_teacher")
    with torch.no_grad():
        maps.weights[1] *= 3
    assert maps.norms().tolist() == pytest.approx([1, 3])
    assert not maps.norms().requires_grad
    value = maps(1, student, teacher)
    torch.testing.assert_close(value, lhsm_per_row(student, teacher, maps.weights[1], "student_to_teacher"))
    value.sum().backward()
    assert maps.weights[0].grad is None
    assert maps.weights[1].grad is not None


def test_training_lowers_it_through_map_and_student() -> None:
    student, teacher, _ = random_problem(64, 8, 12, "teacher_to_student")
    student = student.float().requires_grad_()
    maps = HiddenMaps(1, 8, 12, "teacher_to_student")
    optimizer = torch.optim.Adam([student, *maps.parameters()], lr=0.05)
    start = maps(0, student, teacher).mean().item()
    for _ in range(60):
        optimizer.zero_grad()
        maps(0, student, teacher).mean().backward()
        optimizer.step()
    assert maps(0, student, teacher).mean().item() < start / 10
    assert maps.norms().item() > 0.9


@pytest.mark.parametrize("rows_at_a_time", [1, 7, 64])
def test_rows_in_chunks_have_the_loss_and_gradients_of_all_rows(
    monkeypatch: pytest.MonkeyPatch, rows_at_a_time: int
) -> None:
    found = []
    for chunk_bytes in (1 << 28, 4 * (16 + 12) * (2 + 4 * 2) * rows_at_a_time):
        monkeypatch.setattr(lhsm, "CHUNK_BYTES", chunk_bytes)
        loss, recorded, batch = of_random_rows(n=40, student_size=12, teacher_size=16)
        total = loss.total(recorded, batch)
        leaves = [*recorded.hidden.values(), *loss.maps.weights]
        found.append([total, *torch.autograd.grad(total, leaves)])
    assert found[0][0] > 10
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_memory_does_not_grow_with_the_stored_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lhsm, "CHUNK_BYTES", 1 << 20)
    peaks = []
    for n in (1000, 4000):
        loss, recorded, batch = of_random_rows(n, student_size=64, teacher_size=128)
        with TensorMemory() as memory:
            loss.total(recorded, batch).backward()
        states = sum(tensor.nbytes for tensor in [*recorded.hidden.values(), *batch.values()])
        peaks.append(memory.peak - 1.5 * states)  # the student's states as gathered, and their gradients
    assert max(peaks) < 2 << 20  # 13 MB without chunks


def of_random_rows(n: int, student_size: int, teacher_size: int) -> tuple[lhsm.Lhsm, Recorded, dict[str, torch.Tensor]]:
    """Two pairs of layers, all rows of one sequence stored."""
    torch.manual_seed(0)
    capture = CaptureConfig.model_validate({"hidden": {"layers": [1, 2], "channels_per_scale": 8}})
    assert capture.hidden is not None
    loss = lhsm.Lhsm(LhsmConfig(), capture)
    loss.flat, loss.pairs = False, [(0, 3), (1, 1)]
    loss.maps = HiddenMaps(2, student_size, teacher_size, "teacher_to_student")
    layers = [quantise(torch.randn(n, teacher_size), capture.hidden) for _ in range(2)]
    parts = [torch.stack(part, dim=1) for part in zip(*layers, strict=True)]
    batch = {f"hidden_{name}": part for name, part in zip(NAMES, parts, strict=True)}
    batch |= {"hidden_batch_row": torch.zeros(n, dtype=torch.long), "hidden_column": torch.arange(n)}
    hidden = {layer: torch.randn(1, n, student_size, requires_grad=True) for layer in (1, 3)}
    return loss, Recorded(hidden=hidden), batch
