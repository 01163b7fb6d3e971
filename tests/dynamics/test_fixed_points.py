"""Fixed points against closed forms, SciPy from a dense grid, sign changes, and iteration."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

import memjax as mj

KEY = jax.random.key(0)
RECURRENT = np.array([[2.0, 0.3], [0.3, 1.8]])


def tanh_network(recurrent, input=None):
    width = len(recurrent)
    return mj.NonlinearRNN(
        recurrent, np.ones(width) if input is None else input, None, np.ones(width), leak=True
    )


def by_scipy(recurrent, x, most=3.0, number=25):
    """All zeros of -h + tanh(W h + x), from a grid of starts."""
    field = lambda h: -h + np.tanh(recurrent @ h + x)
    found = []
    for first in np.linspace(-most, most, number):
        for second in np.linspace(-most, most, number):
            root = scipy.optimize.root(field, [first, second], tol=1e-13)
            if np.linalg.norm(field(root.x)) < 1e-11 and not any(
                np.linalg.norm(root.x - other) < 1e-6 for other in found
            ):
                found.append(root.x)
    return np.array(found)


def matched(points, others):
    """For each of the points the nearest of others, each of which is taken once."""
    apart = np.linalg.norm(points[:, None] - others[None], axis=-1)
    nearest = np.argmin(apart, axis=1)
    assert sorted(nearest) == list(range(len(others)))
    return others[nearest]


@pytest.mark.parametrize(
    ("recurrent", "x", "count"),
    [
        (RECURRENT, 0.0, 9),
        (RECURRENT, 0.15, None),
        (np.array([[2.0, -1.5], [1.5, 2.0]]), 0.0, None),
        (np.array([[0.5, 0.2], [-0.1, 0.3]]), 1.0, 1),
    ],
)
def test_two_units_against_scipy(recurrent, x, count):
    found = mj.fixed_points(tanh_network(recurrent), x, key=KEY, starts=400)
    points, others = np.asarray(found.hidden), by_scipy(recurrent, x)
    assert count is None or len(points) == count
    np.testing.assert_allclose(points, matched(points, others), atol=1e-11)
    # The Jacobian by hand.
    for k, point in enumerate(points):
        gain = 1 - np.tanh(recurrent @ point + x) ** 2
        values = np.linalg.eigvals(-np.eye(2) + gain[:, None] * recurrent)
        np.testing.assert_allclose(
            np.sort_complex(found.eigenvalues[k]), np.sort_complex(values + 0j), atol=1e-10
        )
        assert found.stable[k] == np.all(values.real < 0)
        assert found.unstable[k] == np.any(values.real > 0)
    assert not np.any(found.degenerate) and np.max(found.residual) < 1e-15
    assert found.num_failed + int(found.counts.sum()) == 400


def test_points_without_bias_come_in_pairs():
    points = np.asarray(mj.fixed_points(tanh_network(RECURRENT), key=KEY).hidden)
    np.testing.assert_allclose(-points, matched(-points, points), atol=1e-12)
    np.testing.assert_array_equal(points[0], 0)
    lengths = np.linalg.norm(points, axis=1)
    assert np.all(np.diff(lengths) > -1e-9)


@pytest.mark.parametrize("x", [-0.8, -0.3, 0.0, 0.2])
def test_one_unit_against_sign_changes(x):
    function = lambda h: -h + np.tanh(2 * h + x)
    grid = np.linspace(-2, 2, 4002)
    values = function(grid)
    index = np.flatnonzero(np.sign(values[1:]) != np.sign(values[:-1]))
    roots = [scipy.optimize.brentq(function, grid[k], grid[k + 1], xtol=1e-15) for k in index]
    found = mj.fixed_points(tanh_network([[2.0]]), x, key=KEY, starts=64)
    np.testing.assert_allclose(np.sort(np.ravel(found.hidden)), roots, atol=1e-13)


def test_linear_models_have_one_and_its_time_constants():
    recurrent = np.array([[-1.0, 0.4], [0.0, -1e-6]])
    model = mj.LinearRNN(recurrent, np.array([1.0, 2e-6]), np.ones(2))
    found = mj.fixed_points(model, 0.5, key=KEY, starts=16)
    expected = -np.linalg.solve(recurrent, model.input * 0.5)
    np.testing.assert_allclose(found.hidden, [expected], rtol=1e-9)
    # A memory of a million units of time is no degenerate point.
    np.testing.assert_allclose(found.time_constants, [[1e6, 1.0]], rtol=1e-9)
    assert found.stable.all() and not found.degenerate.any() and found.num_failed == 0


# --- Where points are not isolated --------------------------------------------------------------


def field(function, size):
    return mj.fixed_points(
        lambda t, hidden, x: function(hidden), key=KEY, starts=24, hidden=jnp.zeros(size)
    )


def test_a_double_and_a_triple_root_are_one_point_that_is_degenerate():
    for function in (lambda h: h**2, lambda h: -(h**3), lambda h: (h - 0.3) ** 2):
        found = field(function, 1)
        assert found.degenerate.tolist() == [True]
        assert not found.stable.any() and not found.unstable.any()


def test_no_fixed_point_is_made_of_a_slow_one():
    found = field(lambda h: h**2 + 1e-10, 1)
    assert found.counts.shape == (0,) and found.num_failed == 24
    assert found.hidden.shape == (0, 1) and found.time_constants.shape == (0, 1)
    assert "0 in continuous time" in str(found)


def test_lines_of_fixed_points_are_flagged():
    line = field(lambda h: -(h[0] - h[1]) * jnp.array([1.0, -1.0]), 2)
    ring = field(lambda h: (1 - h @ h) * h, 2)
    assert line.degenerate.all() and len(line.counts) > 12
    np.testing.assert_allclose(line.hidden[:, 0], line.hidden[:, 1], atol=1e-12)
    # Of the ring all points are, but not the one in its middle.
    assert ring.degenerate.tolist() == [False] + [True] * (len(ring.counts) - 1)
    assert ring.unstable.tolist() == [True] + [False] * (len(ring.counts) - 1)
    assert not line.stable.any() and not ring.stable.any()
    np.testing.assert_allclose(np.linalg.norm(ring.hidden[1:], axis=1), 1, rtol=1e-12)


def test_two_close_points_are_two():
    apart = 1e-3
    found = field(lambda h: -h * (h**2 - apart**2), 1)
    np.testing.assert_allclose(np.sort(found.hidden[:, 0]), [-apart, 0, apart], atol=1e-9)
    assert not found.degenerate.any() and found.stable.sum() == 2


# --- Discrete time ------------------------------------------------------------------------------


def test_the_logistic_map():
    found = mj.fixed_points(lambda h: 3.2 * h * (1 - h), key=KEY, hidden=jnp.zeros(()))
    np.testing.assert_allclose(found.hidden, [0, 1 - 1 / 3.2], atol=1e-14)
    np.testing.assert_allclose(np.real(found.eigenvalues[:, 0]), [3.2, 2 - 3.2], rtol=1e-12)
    assert found.unstable.all()


@pytest.mark.parametrize(
    "kind", [eqx.nn.GRUCell, pytest.param(eqx.nn.LSTMCell, marks=pytest.mark.thorough)]
)
def test_iterating_a_cell_ends_in_its_stable_points(kind):
    cell = kind(1, 3, key=jax.random.key(1))
    # Large weights make several of them.
    cell = eqx.tree_at(lambda c: c.weight_hh, cell, replace_fn=lambda w: 6 * w)
    x = 0.1
    found = mj.fixed_points(cell, x, key=KEY, starts=400)
    rest = jnp.zeros(3)
    hidden = rest if kind is eqx.nn.GRUCell else (rest, rest)
    noise = lambda leaf: 2 * jax.random.normal(jax.random.key(2), (64, *leaf.shape))
    ends = jax.tree.map(noise, hidden)
    step = jax.jit(jax.vmap(lambda hidden: cell(jnp.array([x]), hidden)))
    for _ in range(3000):
        ends = step(ends)
    before, ends = ends, step(ends)
    flat = lambda tree: np.concatenate([np.asarray(leaf) for leaf in jax.tree.leaves(tree)], axis=1)
    still = np.linalg.norm(flat(ends) - flat(before), axis=1) < 1e-14
    assert still.sum() > 10
    stable = flat(found.hidden)[np.asarray(found.stable)]
    apart = np.linalg.norm(flat(ends)[still, None] - stable[None], axis=-1)
    assert np.max(np.min(apart, axis=1)) < 1e-11
    assert not found.continuous and np.all(np.abs(found.eigenvalues[found.stable]) < 1)
    # What the step makes of them is themselves.
    moved = jax.vmap(lambda h: cell(jnp.array([x]), h))(found.hidden)
    np.testing.assert_allclose(flat(moved), flat(found.hidden), atol=1e-13)


def test_a_gated_network_has_the_points_of_its_cell():
    cell = eqx.nn.LSTMCell(2, 3, key=KEY)
    alone = mj.fixed_points(cell, np.array([0.3, -0.2]), key=KEY, starts=8)
    network = mj.GatedRNN(cell, np.ones(3), 0.5)
    within = mj.fixed_points(network, np.array([0.3, -0.2]), key=KEY, starts=8)
    for one, other in zip(alone.hidden, within.hidden, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-13)
    np.testing.assert_allclose(
        np.sort_complex(within.eigenvalues[0]),
        np.sort_complex(0.5 * (alone.eigenvalues[0] - 1)),
        atol=1e-13,
    )


# --- Invariants ---------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.permutations(range(3)), st.tuples(*[st.sampled_from([-1, 1])] * 3))
def test_units_may_be_exchanged_and_turned_over(seed, order, signs):
    """tanh is odd, and acts on every unit by itself: with P a signed permutation, the points of
    P W P' are P times those of W."""
    recurrent = 1.5 * np.random.default_rng(seed).standard_normal((3, 3))
    turn = np.eye(3)[list(order)] * np.array(signs)
    one = mj.fixed_points(tanh_network(recurrent), key=KEY, starts=200)
    other = mj.fixed_points(tanh_network(turn @ recurrent @ turn.T), key=KEY, starts=200)
    moved = np.asarray(one.hidden) @ turn.T
    # Of many points a few may be missed by so few starts.
    seen = np.asarray(one.counts) > 4
    apart = np.linalg.norm(moved[:, None] - np.asarray(other.hidden)[None], axis=-1)
    near = np.argmin(apart, axis=1)
    assert np.max(np.min(apart, axis=1)[seen]) < 1e-10
    assert np.array_equal(np.asarray(one.stable)[seen], np.asarray(other.stable)[near][seen])


# --- The interface ------------------------------------------------------------------------------


def test_starts_of_ones_own_and_another_solver():
    starts = np.array([[0.9, 0.9], [-0.9, -0.9], [1.1, 1.0]])
    solver = optx.Newton(rtol=1e-8, atol=1e-8)
    found = mj.fixed_points(tanh_network(RECURRENT), key=KEY, starts=starts, solver=solver)
    assert sorted(found.counts.tolist()) == [1, 2] and found.num_starts == 3


def test_it_says_what_it_found():
    text = str(mj.fixed_points(tanh_network(RECURRENT), key=KEY, starts=64))
    assert text.startswith("FixedPoints: 9 in continuous time, of 2 coordinates; 64 of 64")
    assert text.count("unstable") == 5 and max(map(len, text.splitlines())) <= 100


def test_it_is_not_for_tracing():
    model = tanh_network(RECURRENT)
    with pytest.raises(TypeError, match="`x` must be concrete"):
        jax.jit(lambda x: mj.fixed_points(model, x, key=KEY).residual)(0.1)
    with pytest.raises(TypeError, match="must be concrete"):
        jax.jit(lambda: mj.fixed_points(model, key=KEY).residual)()


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "`hidden` must be given", lambda: mj.fixed_points(lambda h: h, key=KEY)),
        (
            TypeError,
            "4 required arguments",
            lambda: mj.fixed_points(lambda a, b, c, d: a, key=KEY, hidden=np.ones(2)),
        ),
        (
            TypeError,
            "same shapes",
            lambda: mj.fixed_points(lambda h: h[:1], key=KEY, hidden=np.ones(2)),
        ),
        (
            ValueError,
            "`model` must take `hidden` and `x`",
            lambda: mj.fixed_points(lambda h, x: h @ x, key=KEY, hidden=np.ones(2)),
        ),
        (
            ValueError,
            "`x` must be a number or of shape",
            lambda: mj.fixed_points(eqx.nn.GRUCell(2, 3, key=KEY), np.ones(3), key=KEY),
        ),
        (
            TypeError,
            "`model` needs float64",
            lambda: mj.fixed_points(
                lambda h: h.astype(jnp.float32), key=KEY, hidden=np.ones(2), starts=1
            ),
        ),
        (
            ValueError,
            "`starts` must be a number, or hidden states",
            lambda: mj.fixed_points(tanh_network(RECURRENT), key=KEY, starts=np.ones((4, 3))),
        ),
    ],
)
def test_wrong_arguments_are_named(error, message, call):
    with pytest.raises(error, match=message):
        call()
