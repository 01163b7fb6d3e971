"""Hessians as objects: every form solves the systems of the array that it stands for."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from memjax.curvature import BlockCurvature, couple, couple_arrays, DenseCurvature, lanczos
from memjax.numerics import exponential_coefficients, gram_factor, oscillating_gram_factor
from memjax.solvers import RADAU


def gram(rates, weights):
    """The Gram matrix of exponentials and of their derivatives, to 60 digits."""
    with mpmath.workdps(60):
        w = [mpmath.mpf(float(x)) for x in rates]
        c = [mpmath.mpf(float(x)) for x in weights]
        functions = [(x, 0, mpmath.mpf(1)) for x in w]
        functions += [(x, 1, -y) for x, y in zip(w, c, strict=True)]
        entry = lambda f, g: (
            f[2] * g[2] * mpmath.factorial(f[1] + g[1]) / (f[0] + g[0]) ** (f[1] + g[1] + 1)
        )
        return mpmath.matrix([[entry(f, g) for g in functions] for f in functions])


def blocks(seed, modes=6, lanes=4, rank=5, size=0.05):
    rng = np.random.default_rng(seed)
    rates, weights = rng.uniform(0.6, 3, (modes, lanes)), rng.normal(size=(modes, lanes))
    own = rng.normal(size=(2, 2, modes, lanes)) * size
    factor = gram_factor(jnp.asarray(rates), jnp.asarray(weights), rank)
    return BlockCurvature(jnp.asarray(own + own.swapaxes(0, 1)), factor)


def low_rank(seed, n=30, lanes=3):
    rng = np.random.default_rng(seed)
    values = np.array([9.0, 4.0, 2.0, 0.5, -0.3])
    bases = [np.linalg.qr(rng.normal(size=(n, 5)))[0] for _ in range(lanes)]
    hessian = jnp.asarray(np.stack([q @ np.diag(values) @ q.T for q in bases], axis=-1))
    product = lambda x: jnp.einsum("ab...,b...->a...", hessian, x)
    return lanczos(product, jnp.asarray(rng.normal(size=(n, lanes))), 8), hessian


FORMS = {
    "array": lambda: (lambda c: DenseCurvature(c.dense()))(blocks(0)),
    "large array": lambda: (lambda c: DenseCurvature(c.dense()))(blocks(1, modes=12)),
    "blocks": lambda: blocks(2),
    "more blocks": lambda: blocks(3, modes=20, rank=8),
    "complete blocks": lambda: blocks(5, modes=4, rank=8),
    "Lanczos": lambda: low_rank(4)[0],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unequal", [False, True])
def test_shifted_systems_are_solved(form, unequal):
    curvature = FORMS[form]()
    hessian = np.asarray(curvature.dense())
    n, _, lanes = hessian.shape
    rng = np.random.default_rng(5)
    shape = (n, lanes) if unequal else (lanes,)
    shift, turn = rng.uniform(1, 2, shape), rng.uniform(1, 2, shape)
    sides = rng.normal(size=(n, 3, lanes))
    real = curvature.shifted(jnp.asarray(shift))
    assert bool(jnp.all(real.definite))
    found = np.asarray(real(jnp.asarray(sides)))
    x, y = curvature.shifted_complex(jnp.asarray(shift), jnp.asarray(turn))(
        jnp.asarray(sides[:, 0]), jnp.asarray(sides[:, 1])
    )
    for lane in range(lanes):
        d = np.diag(np.broadcast_to(shift, (n, lanes))[:, lane])
        e = np.diag(np.broadcast_to(turn, (n, lanes))[:, lane])
        exact = np.linalg.solve(hessian[..., lane] + d, sides[..., lane])
        np.testing.assert_allclose(found[..., lane], exact, rtol=1e-10, atol=1e-12)
        right = sides[:, 0, lane] + 1j * sides[:, 1, lane]
        exact = np.linalg.solve(hessian[..., lane] + d + 1j * e, right)
        np.testing.assert_allclose((x + 1j * y)[:, lane], exact, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        curvature.product(jnp.asarray(sides)),
        np.einsum("abl,bsl->asl", hessian, sides),
        rtol=1e-10,
        atol=1e-12,
    )
    np.testing.assert_allclose(curvature.diagonal(), np.einsum("aal->al", hessian), atol=1e-14)
    largest = np.abs(np.linalg.eigvalsh(np.moveaxis(hessian, -1, 0))).max(axis=1)
    assert np.all(np.asarray(curvature.bound()) >= largest * (1 - 1e-12))


@pytest.mark.parametrize("rows", range(9))
def test_what_is_negligible_is_left_out_and_no_more(rows):
    whole = blocks(9, modes=7, lanes=3, rank=8)
    traces = np.asarray(jnp.sum(whole.factor**2, axis=(1, 2)))
    after = np.cumsum(traces[::-1], axis=0)[::-1]
    # The first lane keeps so many rows, the second what that leaves it, the third none.
    first = after[rows, 0] * (1 + 1e-12) if rows < 8 else 0.0
    size = np.array([first, first, np.inf])
    cut = whole.without(jnp.asarray(size))
    kept = [rows, int(np.sum(after[:, 1] > size[1])), 0]
    assert int(cut.used) == max(kept)
    dense, full = np.asarray(cut.dense()), np.asarray(whole.dense())
    for lane in range(3):
        assert np.all(np.asarray(cut.factor)[kept[lane] :, ..., lane] == 0)
        left = np.linalg.eigvalsh(full[..., lane] - dense[..., lane])
        assert -1e-13 < left[0] and left[-1] <= size[lane] + 1e-13
    rng = np.random.default_rng(rows)
    sides = rng.normal(size=(14, 2, 3))
    real = cut.shifted(jnp.full(3, 1.5))
    assert np.all(real.definite)
    found = np.asarray(real(jnp.asarray(sides)))
    x, y = cut.shifted_complex(jnp.full(3, 1.5), jnp.full(3, 2.5))(
        jnp.asarray(sides[:, 0]), jnp.asarray(sides[:, 1])
    )
    for lane in range(3):
        exact = np.linalg.solve(dense[..., lane] + 1.5 * np.eye(14), sides[..., lane])
        np.testing.assert_allclose(found[..., lane], exact, rtol=1e-10, atol=1e-12)
        right = sides[:, 0, lane] + 1j * sides[:, 1, lane]
        exact = np.linalg.solve(dense[..., lane] + (1.5 + 2.5j) * np.eye(14), right)
        np.testing.assert_allclose((x + 1j * y)[:, lane], exact, rtol=1e-10, atol=1e-12)
    lowest = np.linalg.eigvalsh(np.moveaxis(dense, -1, 0))[:, 0]
    assert not np.any(cut.shifted(jnp.asarray(-lowest - 1e-3)).definite)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_indefinite_is_not_called_definite(form):
    curvature = FORMS[form]()
    lowest = np.linalg.eigvalsh(np.moveaxis(np.asarray(curvature.dense()), -1, 0))[:, 0]
    below = jnp.asarray(-lowest - 1e-3)
    assert not np.any(curvature.shifted(below).definite)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_a_number_is_not_called_definite(form):
    curvature = FORMS[form]()
    broken = jax.tree.map(lambda x: x.at[..., 0].set(jnp.nan), curvature)
    definite = broken.shifted(jnp.full(curvature.diagonal().shape[1:], 1e3)).definite
    assert not definite[0]
    assert np.all(definite[1:])


@pytest.mark.parametrize("form", FORMS)
def test_one_run_needs_no_lanes(form):
    curvature = FORMS[form]()
    one = jax.tree.map(lambda x: x[..., 1], curvature)
    x = jnp.cos(jnp.arange(curvature.diagonal().shape[0]) + 1.0)[:, None]
    both = jnp.broadcast_to(x[..., None], (*x.shape, curvature.diagonal().shape[1]))
    shift = jnp.asarray(1.5)
    many = curvature.shifted(jnp.full(both.shape[-1], 1.5))(both)[..., 1]
    np.testing.assert_allclose(one.shifted(shift)(x), many, rtol=1e-12, atol=1e-14)


def test_lanczos_finds_what_has_low_rank():
    found, hessian = low_rank(6)
    np.testing.assert_allclose(found.dense(), hessian, atol=1e-12)


@pytest.mark.parametrize("rank", [2, 5, 12])
def test_gram_factor_leaves_out_what_it_says(rank):
    rng = np.random.default_rng(7)
    rates, weights = rng.uniform(0.6, 3, 6), rng.normal(size=6)
    factor = np.asarray(gram_factor(jnp.asarray(rates), jnp.asarray(weights), rank))
    factor = factor.reshape(rank, 12)
    left = np.array((gram(rates, weights) - mpmath.matrix(factor.T @ factor)).tolist(), float)
    # Positive semidefinite but for rounding, and gone at full rank.
    assert np.linalg.eigvalsh(left)[0] > -1e-14
    assert rank < 12 or np.abs(left).max() < 1e-14
    assert rank != 5 or np.abs(left).max() < 1e-3


@pytest.mark.parametrize("shift", [1e-8, 1e-14, 1e-20])
def test_solves_keep_their_digits_far_below_rounding(shift):
    """With the array of the Hessian they are off by 1e-4 at a shift of 1e-12, and break down at
    1e-16 (theory: a factor that is right relatively)."""
    rng = np.random.default_rng(8)
    rates, weights = rng.uniform(0.6, 3, 8), rng.normal(size=8)
    factor = gram_factor(jnp.asarray(rates), jnp.asarray(weights), 16)
    curvature = BlockCurvature(jnp.zeros((2, 2, 8)), factor)
    side = rng.normal(size=16)
    found = np.asarray(curvature.shifted(jnp.asarray(shift))(jnp.asarray(side)[:, None])[:, 0])
    with mpmath.workdps(60):
        matrix = gram(rates, weights) + mpmath.mpf(shift) * mpmath.eye(16)
        exact = np.array([float(x) for x in mpmath.lu_solve(matrix, mpmath.matrix(list(side)))])
    assert np.linalg.norm(found - exact) < 1e-6 * np.linalg.norm(exact)


def oscillating(seed, modes=5):
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.6, 3, modes) - 1j * rng.uniform(0, 2, modes)
    # One that does not turn, whose two poles are the same.
    rates[0] = rates[0].real
    return rates, rng.normal(size=modes) + 1j * rng.normal(size=modes), rng.uniform(0.5, 2, modes)


def oscillating_gram(rates, amplitudes, slopes):
    """The Gram matrix of the derivatives of Re c e^(-st), c = a - ib and s = w - i nu, to 60
    digits."""
    with mpmath.workdps(60):
        s, c = ([mpmath.mpc(complex(x)) for x in part] for part in (rates, amplitudes))
        functions = [(x, 0, mpmath.mpc(1)) for x in s] + [(x, 0, mpmath.mpc(0, -1)) for x in s]
        functions += [(x, 1, -y * float(z)) for x, y, z in zip(s, c, slopes, strict=True)]
        functions += [(x, 1, y * mpmath.mpc(0, 1)) for x, y in zip(s, c, strict=True)]

        def entry(f, g):
            order = f[1] + g[1]
            part = lambda k, r: k / (f[0] + r) ** (order + 1)
            both = part(f[2] * g[2], g[0]) + part(f[2] * mpmath.conj(g[2]), mpmath.conj(g[0]))
            return mpmath.factorial(order) * both.real / 2

        return mpmath.matrix([[entry(f, g) for g in functions] for f in functions])


@pytest.mark.parametrize("rank", [4, 10, 20])
def test_gram_factor_of_oscillations_leaves_out_what_it_says(rank):
    given = oscillating(11)
    factor = np.asarray(oscillating_gram_factor(*map(jnp.asarray, given), rank)).reshape(rank, 20)
    whole = oscillating_gram(*given)
    left = np.array((whole - mpmath.matrix(factor.T @ factor)).tolist(), float)
    assert np.linalg.eigvalsh(left)[0] > -1e-14
    assert rank < 20 or np.abs(left).max() < 1e-14
    assert rank != 10 or np.abs(left).max() < 0.02


@pytest.mark.parametrize("shift", [1e-8, 1e-14, 1e-20])
def test_solves_of_oscillations_keep_their_digits_far_below_rounding(shift):
    given = oscillating(12, modes=4)
    factor = oscillating_gram_factor(*map(jnp.asarray, given), 16)
    curvature = BlockCurvature(jnp.zeros((4, 4, 4)), factor)
    side = np.random.default_rng(13).normal(size=16)
    found = np.asarray(curvature.shifted(jnp.asarray(shift))(jnp.asarray(side)[:, None])[:, 0])
    with mpmath.workdps(60):
        matrix = oscillating_gram(*given) + mpmath.mpf(shift) * mpmath.eye(16)
        exact = np.array([float(x) for x in mpmath.lu_solve(matrix, mpmath.matrix(list(side)))])
    assert np.linalg.norm(found - exact) < 1e-6 * np.linalg.norm(exact)


def test_coefficients_add_up_to_the_squared_norm():
    rng = np.random.default_rng(9)
    amplitudes, rates = rng.normal(size=5), rng.uniform(0.6, 3, 5)
    nodes = jnp.asarray(np.append(rates, [0.5, 1.5]))
    found, moduli = exponential_coefficients(jnp.asarray(amplitudes), jnp.asarray(rates), nodes)
    exact = amplitudes @ (1 / (rates[:, None] + rates)) @ amplitudes
    np.testing.assert_allclose(jnp.sum(found**2), exact, rtol=1e-13)
    each = [
        exponential_coefficients(jnp.eye(5)[k] * amplitudes[k], jnp.asarray(rates), nodes)[0]
        for k in range(5)
    ]
    np.testing.assert_allclose(moduli, jnp.sum(jnp.abs(jnp.stack(each)), axis=0), rtol=1e-13)


@pytest.mark.parametrize("form", ["array", "blocks"])
def test_all_stages_together(form):
    curvatures = [blocks(seed) for seed in (10, 11, 12)]
    if form == "array":
        curvatures = [DenseCurvature(curvature.dense()) for curvature in curvatures]
    rng = np.random.default_rng(13)
    right, rate = rng.normal(size=(12, 3, 4)), np.array([0.5, 1.0, 2.0, 4.0])
    found = np.asarray(couple(curvatures, RADAU.inverse, jnp.asarray(rate))(jnp.asarray(right)))
    arrays = [curvature.dense() for curvature in curvatures]
    again = couple_arrays(arrays, RADAU.inverse, jnp.asarray(rate))(jnp.asarray(right))
    for lane in range(4):
        left = rate[lane] * np.einsum("ik,nkl->nil", RADAU.inverse, found)[..., lane]
        left = left + np.stack(
            [np.asarray(a)[..., lane] @ found[:, k, lane] for k, a in enumerate(arrays)], axis=1
        )
        np.testing.assert_allclose(left, right[..., lane], atol=1e-12)
    np.testing.assert_allclose(again, found, atol=1e-12)
