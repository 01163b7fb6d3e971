"""Jacobians along trajectories against closed forms, matrix exponentials and NumPy's products."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import memjax as mj

KEY = jax.random.key(0)


def random_model(width=3, leak=True):
    return mj.NonlinearRNN.init(width, gain=1.5, leak=leak, key=KEY)


def test_a_network_in_continuous_time_by_hand():
    model = random_model()
    xs = np.random.default_rng(0).standard_normal(12)
    found = mj.jacobians(model, xs, step=0.3)
    assert found.lag_singular_values is None and found.continuous
    ts = 0.3 * np.arange(12)
    # The readout of a model with a unit matrix is its hidden state.
    seen = eqx.tree_at(lambda m: m.output.readout_weights, model, jnp.eye(3))
    np.testing.assert_allclose(found.hidden, seen(ts, xs, solver=diffrax.Tsit5()), atol=1e-6)
    for k, hidden in enumerate(np.asarray(found.hidden)):
        gain = 1 - np.tanh(model.recurrent @ hidden + model.input * xs[k]) ** 2
        matrix = -np.eye(3) + gain[:, None] * np.asarray(model.recurrent)
        values = np.linalg.eigvals(matrix)
        np.testing.assert_allclose(
            np.sort_complex(found.eigenvalues[k]), np.sort_complex(values + 0j), atol=1e-12
        )
        np.testing.assert_allclose(
            found.singular_values[k], np.linalg.svd(matrix, compute_uv=False), atol=1e-12
        )
    assert np.all(np.diff(np.real(found.eigenvalues), axis=1) <= 0)


def test_a_linear_model_over_a_lag_is_a_matrix_exponential():
    matrix = np.array([[-1.0, 2.0], [0.0, -0.5]])
    model = mj.LinearRNN(matrix, np.ones(2), np.ones(2))
    found = mj.jacobians(model, np.ones(30), step=0.1, lag=20)
    sizes = np.linalg.svd(scipy.linalg.expm(2.0 * matrix), compute_uv=False)
    np.testing.assert_allclose(found.lag_singular_values, np.tile(sizes, (10, 1)), rtol=1e-7)


@pytest.mark.parametrize("lag", [1, 2, 5, 13, 30])
def test_products_over_a_lag_for_a_state_of_two_parts(lag):
    cell = eqx.nn.LSTMCell(2, 3, key=KEY)
    xs = jax.random.normal(jax.random.key(1), (30, 2))
    found = mj.jacobians(cell, xs, lag=lag)
    step = lambda state, x: jnp.concatenate(cell(x, (state[:3], state[3:])))
    states = np.concatenate([np.asarray(part) for part in found.hidden], axis=1)
    np.testing.assert_array_equal(states[0], 0)
    np.testing.assert_allclose(step(states[7], xs[7]), states[8], atol=1e-14)
    # The derivative of all the steps at once.
    run = lambda state, xs: jax.lax.scan(lambda s, x: (step(s, x), None), state, xs)[0]
    assert found.lag_singular_values.shape == (31 - lag, 6)
    for k in (0, 30 - lag):
        matrix = jax.jacrev(run)(states[k], xs[k : k + lag])
        sizes = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(found.lag_singular_values[k], sizes, atol=1e-13)
    if lag == 1:
        np.testing.assert_allclose(found.lag_singular_values, found.singular_values, rtol=1e-9)


@pytest.mark.thorough
def test_the_exponents_are_the_growth_over_a_long_lag():
    """The first singular value of a long product grows as the first Lyapunov exponent says."""
    cell = eqx.nn.GRUCell(1, 4, key=KEY)
    xs = jax.random.normal(KEY, (400,))
    product = mj.jacobians(cell, xs, lag=400).lag_singular_values
    exponent = mj.lyapunov_spectrum(cell, key=KEY, xs=xs, transient=0).exponents[0]
    np.testing.assert_allclose(np.log(product[0, 0]) / 400, exponent, atol=0.01)


def test_at_rest_they_are_those_of_the_fixed_point():
    model = random_model()
    found = mj.jacobians(model, np.zeros(3))
    point = mj.fixed_points(model, key=KEY, starts=64)
    np.testing.assert_array_equal(point.hidden[0], 0)
    for row in found.eigenvalues:
        np.testing.assert_allclose(
            np.sort_complex(row), np.sort_complex(point.eigenvalues[0]), atol=1e-13
        )


def test_batches_of_inputs_and_lost_trajectories():
    step = lambda h, x: jnp.stack([h[1] + x, 0.5 * h[0] ** 2])
    xs = np.array([[0.1, 0.2, 0.3, 0.4, 0.5], [1e200, 1e200, 0.0, 0.0, 0.0]])
    many = jax.jit(jax.vmap(lambda x: mj.jacobians(step, x, hidden=np.ones(2), lag=3)))(xs)
    one = mj.jacobians(step, xs[0], hidden=np.ones(2), lag=3)
    np.testing.assert_allclose(many.lag_singular_values[0], one.lag_singular_values, rtol=1e-12)
    np.testing.assert_allclose(many.eigenvalues[0], one.eigenvalues, rtol=1e-12)
    assert not np.all(np.isfinite(many.lag_singular_values[1]))
    assert "lag_singular_values" in str(one)


@pytest.mark.parametrize(
    ("message", "xs", "options"),
    [
        ("`xs` must be samples at two times or more", np.ones(1), {}),
        ("`xs` must be samples .* of shape \\(times,\\)", np.ones((4, 2)), {}),
        ("`lag` must be at most 3 for 4 samples", np.ones(4), {"lag": 4}),
        ("`hidden` must be like the hidden state", np.ones(4), {"hidden": np.ones(2)}),
    ],
)
def test_wrong_arguments_are_named(message, xs, options):
    with pytest.raises(ValueError, match=message):
        mj.jacobians(random_model(), xs, **options)
