"""Curvatures far below the rounding of the largest, where modes merge."""

import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from memjax.curvature import couple, GradedCurvature
from memjax.numerics import complete_gram_factor
from memjax.solvers import RADAU

MODES = {
    "apart": ([0.7, 1.1, 2.3], [0.5, -1.0, 0.3]),
    "close": ([1.0 + 1e-4, 1.0 - 3e-5], [0.22, 0.78]),
    "closer": ([1.000000005, 0.999999995], [0.5, 0.5]),
    "three": ([1.001, 1.0, 0.9985], [0.25, 0.5, 0.25]),
}


def exact_gram(rates, weights):
    w = [mpmath.mpf(float(x)) for x in rates]
    functions = [(x, 0, mpmath.mpf(1)) for x in w]
    functions += [(x, 1, -mpmath.mpf(float(c))) for x, c in zip(w, weights, strict=True)]
    entry = lambda f, g: (
        f[2] * g[2] * mpmath.factorial(f[1] + g[1]) / (f[0] + g[0]) ** (f[1] + g[1] + 1)
    )
    return mpmath.matrix([[entry(f, g) for g in functions] for f in functions])


@mpmath.workdps(80)
def curvature_of(rates, weights, seed=0, size=1e-14):
    """The Gram matrix plus symmetric blocks of some size, as an object and exactly."""
    rng = np.random.default_rng(seed)
    blocks = size * rng.normal(size=(2, 2, len(rates)))
    blocks = blocks + blocks.swapaxes(0, 1)
    column = lambda x: jnp.asarray(x)[:, None]
    factor, order = complete_gram_factor(column(rates), column(weights))
    exact = exact_gram(rates, weights)
    m = len(rates)
    for i in range(2):
        for j in range(2):
            for k in range(m):
                exact[i * m + k, j * m + k] += mpmath.mpf(float(blocks[i, j, k]))
    return GradedCurvature(jnp.asarray(blocks)[..., None], factor, order), exact


@pytest.mark.parametrize("name", MODES)
def test_the_factor_is_a_triangle_and_that_of_the_gram_matrix(name):
    rates, weights = MODES[name]
    column = lambda x: jnp.asarray(x)[:, None]
    factor, order = complete_gram_factor(column(rates), column(weights))
    n = 2 * len(rates)
    rows = np.asarray(factor).reshape(n, n)
    triangle = rows[:, np.asarray(order)[:, 0]]
    assert sorted(np.asarray(order)[:, 0]) == list(range(n))
    np.testing.assert_array_equal(triangle, np.triu(triangle))
    with mpmath.workdps(80):
        gram = exact_gram(rates, weights)
        # Every pivot is one of Cholesky's factor of the exact matrix, to a small relative error.
        taken = [int(k) for k in np.asarray(order)[:, 0]]
        ordered = mpmath.matrix([[gram[i, j] for j in taken] for i in taken])
        exact = mpmath.cholesky(ordered).T
        for k in range(n):
            for j in range(k, n):
                error = abs(abs(exact[k, j]) - abs(mpmath.mpf(float(triangle[k, j]))))
                largest = max(abs(exact[k, i]) for i in range(k, n))
                assert error <= 1e-7 * largest


@pytest.mark.parametrize("name", MODES)
@pytest.mark.parametrize("shift", [1e3, 1e-3, 1e-12, 1e-18])
def test_solves_do_not_mix_large_and_small_curvatures(name, shift):
    curvature, exact = curvature_of(*MODES[name], size=shift / 10)
    n = exact.rows
    side = np.random.default_rng(1).normal(size=n)
    shifted = curvature.shifted(jnp.asarray([shift]))
    found = np.asarray(shifted(jnp.asarray(side)[:, None, None]))[:, 0, 0]
    with mpmath.workdps(80):
        whole = exact + mpmath.mpf(shift) * mpmath.eye(n)
        wanted = mpmath.lu_solve(whole, mpmath.matrix([mpmath.mpf(float(x)) for x in side]))
        eigenvalues = mpmath.eigsy(whole, eigvals_only=True)
        assert bool(shifted.definite[0]) == (min(eigenvalues) > 0)
        values = np.array([float(x) for x in wanted])
        np.testing.assert_allclose(found, values, atol=1e-6 * np.abs(values).max())
        # What large curvatures see of the solution is right to its rounding.
        left = whole * (mpmath.matrix([mpmath.mpf(float(x)) for x in found]) - wanted)
        largest = max(abs(x) for x in left)
        assert largest <= 1e-6 * np.abs(side).max() + 1e-13 * np.abs(values).max()


@pytest.mark.parametrize("shift", [1e-2, 1e-16])
def test_the_systems_of_all_stages(shift):
    found = [curvature_of(*MODES["close"], seed=k, size=shift / 10) for k in range(3)]
    curvatures, exact = [x for x, _ in found], [y for _, y in found]
    n = exact[0].rows
    right = np.random.default_rng(2).normal(size=(n, 3))
    solve = couple(curvatures, RADAU.inverse, jnp.asarray([shift]))
    out = np.asarray(solve(jnp.asarray(right)[..., None]))[..., 0]
    with mpmath.workdps(80):
        whole = mpmath.matrix(3 * n, 3 * n)
        for i in range(3):
            for k in range(3):
                for a in range(n):
                    entry = mpmath.mpf(float(RADAU.inverse[i, k])) * mpmath.mpf(shift)
                    whole[i * n + a, k * n + a] += entry
                    for b in range(n):
                        whole[i * n + a, k * n + b] += exact[i][a, b] if i == k else 0
        sides = mpmath.matrix([mpmath.mpf(float(x)) for x in right.T.ravel()])
        wanted = np.array([float(x) for x in mpmath.lu_solve(whole, sides)]).reshape(3, n).T
    np.testing.assert_allclose(out, wanted, atol=1e-6 * np.abs(wanted).max())
