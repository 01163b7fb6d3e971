import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import memjax
from memjax.targets import state_space

RNG = np.random.default_rng(4)
W = RNG.normal(size=(5, 5)) - 3 * np.eye(5)
U, C = RNG.normal(size=(5, 2)), RNG.normal(size=(3, 5))
TS = np.concatenate([[0.0], np.cumsum(RNG.uniform(0.05, 0.6, size=24))])


def flow(t):
    return scipy.linalg.expm(W * t)


@pytest.mark.parametrize(
    ("u", "c", "shape"), [(U[:, 0], C[0], ()), (U, C[0], (2,)), (U, C, (3, 2))]
)
def test_kernel_and_transform(u, c, shape):
    kernel = memjax.StateSpaceKernel(W, u, c)
    assert kernel.shape == shape
    t = np.array([[0.0, 0.3], [7.0, -1.0]])
    values = kernel(t)
    assert values.shape == (2, 2, *shape)
    exact = [c @ flow(0.0) @ u, c @ flow(0.3) @ u, c @ flow(7.0) @ u, 0 * (c @ u)]
    np.testing.assert_allclose(values.reshape(4, *shape), exact, rtol=1e-12, atol=1e-18)
    exact = [c @ np.linalg.solve(s * np.eye(5) - W, u) for s in (0.1, 4.0)]
    np.testing.assert_allclose(kernel.laplace(np.array([0.1, 4.0])), exact, rtol=1e-12)
    assert kernel.linear and kernel.in_l1 and kernel.in_l2 and kernel.memory == "exponential"


def test_response_is_exact_on_any_grid():
    kernel = memjax.StateSpaceKernel(W, U, C)
    xs = RNG.normal(size=(TS.size, 2))
    hidden, outputs = np.zeros(5), [np.zeros(3)]
    inverse = np.linalg.inv(W)
    for dt, x, y in zip(np.diff(TS), xs[:-1], xs[1:], strict=True):
        # h' = W h + U (x + slope t) in closed form
        slope = U @ (y - x) / dt
        offset = inverse @ (U @ x) + inverse @ inverse @ slope
        hidden = flow(dt) @ (hidden + offset) - offset - inverse @ slope * dt
        outputs.append(C @ hidden)
    np.testing.assert_allclose(kernel.response(TS, xs), outputs, rtol=1e-10, atol=1e-13)
    even = np.linspace(0, 5, 26)
    xs = RNG.normal(size=(26, 2))
    traced = eqx.filter_jit(kernel.response)(jnp.asarray(even), xs)
    np.testing.assert_allclose(kernel.response(even, xs), traced, rtol=1e-10, atol=1e-13)


@pytest.mark.thorough
def test_real_blocks_of_kernels_that_have_a_state_space():
    oscillation = memjax.DampedOscillation([1.0, 0.5], [-0.3, 2.0], [0.5, 1.0], [2.0, 3.0])
    exponential = memjax.ExponentialSum([1.0, -2.0], [0.7, 3.0])
    vector = memjax.VectorKernel(
        ((oscillation, exponential), (exponential + oscillation, 2.0 * oscillation))
    )
    recurrent, inputs, readout = state_space(vector)  # pyright: ignore[reportGeneralTypeIssues]
    assert inputs.shape[1] == 2 and readout.shape[0] == 2
    kernel = memjax.StateSpaceKernel(recurrent, inputs, readout)
    t = np.array([0.0, 0.4, 3.0, 20.0])
    np.testing.assert_allclose(kernel(t), vector(t), rtol=1e-12, atol=1e-14)
    even = np.linspace(0, 5, 26)
    xs = RNG.normal(size=(26, 2))
    np.testing.assert_allclose(
        kernel.response(even, xs), vector.response(even, xs), rtol=1e-10, atol=1e-12
    )
    for other in (memjax.Box(1.0, 2.0), exponential + memjax.Box(1.0, 2.0), lambda t: t):
        assert state_space(other) is None
    assert state_space(memjax.VectorKernel((exponential, memjax.Box(1.0, 2.0)))) is None


def test_sums():
    first = memjax.StateSpaceKernel(W, U[:, 0], C[0])
    second = memjax.ExponentialSum(2.0, 0.3)
    for total in (first + second, second + first, sum([first, second, first]) + -1.0 * second):
        assert isinstance(total, memjax.StateSpaceKernel)
    np.testing.assert_allclose((first + second)(0.4), first(0.4) + second(0.4), rtol=1e-13)
    matrix = memjax.StateSpaceKernel(W, U, C)
    np.testing.assert_allclose((matrix + matrix)(0.4), 2 * matrix(0.4), rtol=1e-13)
    with pytest.raises(ValueError, match="must have the same shape"):
        first + matrix
    assert isinstance(first + memjax.Box(1.0, 2.0), memjax.KernelSum)
    with pytest.raises(TypeError, match="must be a scalar kernel"):
        matrix + memjax.Box(1.0, 2.0)


def test_derivatives_and_batches():
    def value(w):
        return memjax.StateSpaceKernel(w, U, C)(0.8)[1, 0]

    direction = RNG.normal(size=W.shape)
    slope = jnp.vdot(jax.grad(value)(jnp.asarray(W)), direction)
    exact = scipy.linalg.expm_frechet(0.8 * W, 0.8 * direction, compute_expm=False)
    np.testing.assert_allclose(slope, (C @ exact @ U)[1, 0], rtol=1e-11)
    batch = jax.vmap(value)(jnp.stack([W, W - np.eye(5)]))
    np.testing.assert_allclose(batch[1], np.exp(-0.8) * batch[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((2, 3)), np.ones(2), np.ones(2)), "`recurrent` must be a square matrix"),
        ((-np.eye(2), np.ones(3), np.ones(2)), "`input` must have shape"),
        ((-np.eye(2), np.ones(2), np.ones((2, 3))), "`readout` must have shape"),
        (
            (np.diag([-1.0, 0.5]), np.ones(2), np.ones(2)),
            "left half-plane, got .* 0.5",
        ),
        (
            (np.array([[0.0, 1.0], [-1.0, 0.0]]), np.ones(2), np.ones(2)),
            "left half-plane",
        ),
        ((np.diag([-1.0, np.nan]), np.ones(2), np.ones(2)), "`recurrent` must be finite"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        memjax.StateSpaceKernel(*arguments)


@pytest.mark.slow
def test_vector_kernel():
    first, second = memjax.ExponentialSum(1.0, 1.0), memjax.Box(1.0, 2.0)
    row = memjax.VectorKernel((first, second))
    assert row.shape == (2,) and row.inputs == 2 and row.outputs == 1
    assert row(np.zeros((3, 1))).shape == (3, 1, 2)
    np.testing.assert_allclose(row.squared_norm(), 1.5)
    np.testing.assert_allclose(row.laplace(1.0), [0.5, np.exp(-1) - np.exp(-2)], rtol=1e-14)
    xs = RNG.normal(size=(TS.size, 2))
    even = np.arange(TS.size) / 4
    exact = first.response(even, xs[:, 0]) + second.response(even, xs[:, 1])
    np.testing.assert_allclose(row.response(even, xs), exact, rtol=1e-13)
    assert row.memory == "exponential" and row.in_l1 and row.in_l2
    table = memjax.VectorKernel(((first,), (second,), (memjax.Sine(),)))
    assert table.shape == (3, 1) and not table.in_l1 and table.memory == "none"
    assert table.response(even, xs[:, :1]).shape == (TS.size, 3)
    assert table.heaviside_response(TS).shape == (TS.size, 3, 1)
    with pytest.raises(ValueError, match="as many kernels in every row"):
        memjax.VectorKernel(((first,), (first, second)))
    with pytest.raises(ValueError, match="as many kernels in every row"):
        memjax.VectorKernel(())
    with pytest.raises(TypeError, match="must be a scalar kernel, got StateSpaceKernel"):
        memjax.VectorKernel((memjax.StateSpaceKernel(W, U, C),))
    with pytest.raises(ValueError, match="pass an array of shape"):
        row.response(TS, xs[:, 0])
