"""Orthogonal factors against singular value decompositions in double precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.optim.orthogonal import POLAR_EXPRESS, orthogonalise, quintics

# What each method's first five steps make of singular values, and from which on it holds (of the Frobenius norm).
BOUNDS = {"newton-schulz": (0.02, 0.68, 1.14), "polar-express": (0.001, 0.84, 1.13)}


def with_singular_values(values, rows, columns, seed=0):
    """A matrix U diag(values) V^T in float64, and U V^T."""
    generator = torch.Generator().manual_seed(seed)
    n = min(rows, columns)
    u, _ = torch.linalg.qr(torch.randn(rows, n, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(columns, n, generator=generator, dtype=torch.float64))
    return u @ torch.diag(values) @ v.T, u, v


@pytest.mark.parametrize("method", BOUNDS)
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 24), columns=st.integers(1, 24), seed=st.integers(0, 1000), scale=st.floats(1e-4, 1e4))
def test_singular_values_end_within_bounds_and_vectors_stay(method, rows, columns, seed, scale):
    lowest, low, high = BOUNDS[method]
    n = min(rows, columns)
    drawn = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = lowest ** (0.9 * drawn)  # down to nearly the lowest, evenly in the logarithm
    values[0] = 1.0
    values /= torch.linalg.vector_norm(values).clamp(min=1)  # what dividing by the norm leaves of them
    values.clamp_(min=lowest * 1.1)
    matrix, u, v = with_singular_values(values, rows, columns, seed)
    made = orthogonalise(matrix * scale, method)
    inner = u.T @ made @ v  # diagonal, if the singular vectors are the same
    assert low < torch.diagonal(inner).min() and torch.diagonal(inner).max() < high
    torch.testing.assert_close(inner, torch.diag(torch.diagonal(inner)), rtol=0, atol=1e-9)
    torch.testing.assert_close(u @ inner @ v.T, made, rtol=0, atol=1e-9)  # nothing outside of them


def test_both_stay_within_bounds_on_a_fine_grid():
    """The polynomials themselves: every singular value from the lowest to one."""
    for method, (lowest, low, high) in BOUNDS.items():
        s = torch.logspace(0, 1, 200001, base=lowest, dtype=torch.float64)
        for a, b, c in quintics(method, 5):
            s = a * s + b * s**3 + c * s**5
        assert low < s.min() and s.max() < high, method


def test_polar_express_errs_evenly_to_both_sides():
    """As the best polynomials for an interval do (Chebyshev): what it becomes lies evenly around one."""
    s = torch.logspace(0, 1, 200001, base=0.001, dtype=torch.float64)
    for a, b, c in POLAR_EXPRESS[:5]:
        s = a * s + b * s**3 + c * s**5
        assert s.min() + s.max() == pytest.approx(2.0, abs=2e-4)


def test_more_steps_of_polar_express_reach_the_orthogonal_factor():
    generator = torch.Generator().manual_seed(1)
    for shape in [(8, 8), (5, 12), (12, 5)]:
        matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        torch.testing.assert_close(orthogonalise(matrix, "polar-express", 14), u @ vh, rtol=0, atol=1e-6)


def test_a_stack_is_each_of_its_matrices_and_transposing_comes_through():
    stack = torch.randn(2, 3, 6, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    made = orthogonalise(stack)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(made[i, j], orthogonalise(stack[i, j]), rtol=0, atol=1e-12)
    torch.testing.assert_close(orthogonalise(stack.mT), made.mT, rtol=0, atol=1e-12)


def test_zeros_stay_zeros_and_nothing_is_written_to():
    zeros = torch.zeros(4, 6)
    assert torch.equal(orthogonalise(zeros), torch.zeros(4, 6))
    matrix = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    before = matrix.clone()
    orthogonalise(matrix)
    assert torch.equal(matrix, before)


def test_bf16_is_near():
    """To bf16's rounding of some ten products, which is small beside what five steps leave to be desired."""
    matrix = torch.randn(64, 96, generator=torch.Generator().manual_seed(4))
    made = orthogonalise(matrix.bfloat16())
    assert made.dtype == torch.bfloat16
    values = torch.linalg.svdvals(made.float())
    assert values.min() > 0.8 and values.max() < 1.2
