"""Lyapunov exponents against closed forms and published values, and their errors against chance."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj

KEY = jax.random.key(0)


def lorenz63(t, y, args):
    return jnp.stack([10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]])


def lorenz96(t, y, args):
    return (jnp.roll(y, -1) - jnp.roll(y, 2)) * jnp.roll(y, 1) - y + 8


def henon(h):
    return jnp.stack([1 - 1.4 * h[0] ** 2 + h[1], 0.3 * h[0]])


# --- Closed forms -------------------------------------------------------------------------------


def normal_matrix(eigenvalues, seed=0):
    """A matrix with right angles between its eigenvectors, in which pairs turn."""
    blocks = np.zeros((4, 4))
    blocks[0, 0], blocks[1, 1] = eigenvalues[:2]
    real, imaginary = eigenvalues[2]
    blocks[2:, 2:] = [[real, -imaginary], [imaginary, real]]
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((4, 4)))[0]
    return turn @ blocks @ turn.T


def test_linear_models_have_the_real_parts_of_their_eigenvalues():
    matrix = normal_matrix([-0.3, -2.0, (-0.7, 5.0)])
    model = mj.LinearRNN(matrix, np.ones(4), np.ones(4))
    found = mj.lyapunov_spectrum(model, key=KEY, num_intervals=64, transient=200)
    np.testing.assert_allclose(found.exponents, [-0.3, -0.7, -0.7, -2.0], atol=2e-8)
    assert np.max(found.standard_errors) < 1e-8
    np.testing.assert_allclose(found.duration, 6.4)


def test_linear_maps_have_the_logarithms_of_the_moduli():
    matrix = normal_matrix([1.1, -0.2, (0.3, 0.4)])
    found = mj.lyapunov_spectrum(
        lambda h: matrix @ h, key=KEY, hidden=np.zeros(4), num_intervals=64, transient=200
    )
    np.testing.assert_allclose(found.exponents, np.log([1.1, 0.5, 0.5, 0.2]), atol=1e-13)
    skew = np.array([[0.9, 5.0], [0.0, 0.4]])  # not normal
    found = mj.lyapunov_spectrum(lambda h: skew @ h, key=KEY, hidden=np.zeros(2), interval=3)
    np.testing.assert_allclose(found.exponents, np.log([0.9, 0.4]), atol=1e-13)


def test_the_exponent_under_an_input_is_its_average():
    xs = np.random.default_rng(0).uniform(0.2, 1.5, 500)
    discrete = mj.lyapunov_spectrum(
        lambda h, x: x * h, key=KEY, xs=xs, hidden=np.ones(1), transient=100
    )
    np.testing.assert_allclose(discrete.exponents, [np.mean(np.log(xs[100:]))], rtol=1e-12)
    continuous = mj.lyapunov_spectrum(
        lambda t, h, x: (x + jnp.sin(t)) * h,
        key=KEY,
        xs=xs,
        hidden=np.zeros(1),
        transient=99,
        interval=0.2,
    )
    ts = 0.2 * np.arange(99, 500)
    integral = np.trapezoid(xs[99:], ts) + np.cos(ts[0]) - np.cos(ts[-1])
    np.testing.assert_allclose(continuous.exponents, [integral / 80], rtol=1e-8)
    np.testing.assert_allclose(continuous.duration, 80.0)


def test_henon():
    """0.4192 and -1.6232 (Sprott, Chaos and Time-Series Analysis, 2003, Appendix A)."""
    found = mj.lyapunov_spectrum(henon, key=KEY, hidden=np.zeros(2), num_intervals=200_000)
    np.testing.assert_allclose(found.total, np.log(0.3), rtol=1e-12)
    error = np.abs(found.exponents - np.array([0.4192, -1.6232]))
    assert np.all(error < 2 * found.standard_errors) and np.all(found.standard_errors < 2e-3)
    np.testing.assert_allclose(found.dimension, 1 + 0.4192 / 1.6232, atol=2e-3)


def test_the_logistic_map():
    found = mj.lyapunov_spectrum(
        lambda h: 4 * h * (1 - h), key=KEY, hidden=np.array([0.3]), num_intervals=50_000
    )
    np.testing.assert_allclose(found.exponents, [np.log(2)], atol=2e-4)
    assert abs(found.exponents[0] - np.log(2)) < 2 * found.standard_errors[0] < 1e-3
    np.testing.assert_allclose(found.entropy, found.exponents[0])


# --- Published values ---------------------------------------------------------------------------


def check_lorenz63(found):
    """0.9056, 0 and -14.5723 (Sprott, Chaos and Time-Series Analysis, 2003, Appendix A)."""
    np.testing.assert_allclose(found.total, -(10 + 1 + 8 / 3), atol=1e-6)
    error = np.abs(found.exponents - np.array([0.9056, 0.0, -14.5723]))
    assert np.all(error < 2 * found.standard_errors)


@pytest.mark.thorough
def test_lorenz63():
    found = mj.lyapunov_spectrum(
        lorenz63, key=KEY, hidden=np.ones(3), num_intervals=3000, transient=200
    )
    check_lorenz63(found)
    assert np.max(found.standard_errors) < 0.05


@pytest.mark.slow
def test_lorenz63_for_long():
    found = mj.lyapunov_spectrum(lorenz63, key=KEY, hidden=np.ones(3), num_intervals=100_000)
    check_lorenz63(found)
    assert np.max(found.standard_errors) < 4e-3
    np.testing.assert_allclose(found.dimension, 2.062, atol=1e-3)


def check_lorenz96(found):
    """Errors double in 2.1 days, where a unit of time is 5 days (Lorenz, Emanuel, Optimal Sites for
    Supplementary Weather Observations, J. Atmos. Sci. 55, 1998, for 40 units and F = 8): as that is
    rounded, an exponent of log 2 / 0.43 to log 2 / 0.41, or 1.612 to 1.691. For 36 units Carrassi,
    Ghil, Trevisan, Uboldi, Chaos 18, 2008, have 1.66."""
    np.testing.assert_allclose(found.total, -40, atol=1e-6)
    largest, error = found.exponents[0], found.standard_errors[0]
    assert np.log(2) / 0.43 - 2 * error < largest < np.log(2) / 0.41 + 2 * error


def start96():
    return 8 + jax.random.normal(jax.random.key(1), (40,))


@pytest.mark.slow
def test_lorenz96():
    found = mj.lyapunov_spectrum(
        lorenz96, key=KEY, hidden=start96(), num_intervals=800, transient=100, interval=0.15
    )
    check_lorenz96(found)


def by_numpy(start, frame, number, transient, step):
    """The exponents of Lorenz-96 by classical Runge-Kutta steps of state and directions."""
    forward = lambda y: (np.roll(y, -1) - np.roll(y, 2)) * np.roll(y, 1) - y + 8

    def push(y, q):
        roll = lambda k: np.roll(q, k, axis=0)
        near, left = np.roll(y, 1)[:, None], (np.roll(y, -1) - np.roll(y, 2))[:, None]
        return near * (roll(-1) - roll(2)) + left * roll(1) - q

    rates = []
    y, q = start, frame
    for _ in range(number + transient):
        k1, m1 = forward(y), push(y, q)
        a = y + step / 2 * k1
        k2, m2 = forward(a), push(a, q + step / 2 * m1)
        b = y + step / 2 * k2
        k3, m3 = forward(b), push(b, q + step / 2 * m2)
        c = y + step * k3
        k4, m4 = forward(c), push(c, q + step * m3)
        y = y + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        q, r = np.linalg.qr(q + step / 6 * (m1 + 2 * m2 + 2 * m3 + m4))
        rates.append(np.log(np.abs(np.diag(r))) / step)
    return np.array(rates[transient:])


@pytest.mark.slow
def test_lorenz96_for_long():
    found = mj.lyapunov_spectrum(
        lorenz96, key=KEY, hidden=start96(), num_intervals=16_000, transient=500, interval=0.15
    )
    check_lorenz96(found)
    # By the same paper a dimension of 27.1, and 13 positive exponents.
    np.testing.assert_allclose(found.dimension, 27.1, atol=0.15)
    clear = np.abs(found.exponents) > 4 * found.standard_errors
    assert np.sum((found.exponents > 0) & clear) == 13
    # Against another integration, by NumPy, from another start.
    rng = np.random.default_rng(0)
    frame = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    rates = by_numpy(8 + rng.standard_normal(40), frame, 20_000, 2000, 0.025)
    batches = rates.reshape(20, -1, 40).mean(axis=1)
    spread = np.std(batches, axis=0, ddof=1) ** 2 / 20
    apart = (found.exponents - batches.mean(axis=0)) / np.sqrt(spread + found.standard_errors**2)
    # All 40 are large and small together, so by chance many are two errors away, or none.
    assert abs(apart[0]) < 2 and np.max(np.abs(apart)) < 4


# --- Random networks (Sompolinsky, Crisanti, Sommers, Phys. Rev. Lett. 61, 1988) ----------------


def random_network(gain, width, seed=0):
    weights = np.random.default_rng(seed).standard_normal((width, width)) / np.sqrt(width)
    return gain * weights, lambda t, h, x: -h + gain * weights @ jnp.tanh(h)


@pytest.mark.parametrize("gain", [pytest.param(0.6, marks=pytest.mark.slow), 1.8])
def test_exponents_of_a_random_network_at_rest(gain):
    weights, field = random_network(gain, 6)
    found = mj.lyapunov_spectrum(
        field, key=KEY, hidden=np.zeros(6), num_intervals=4000, transient=1000
    )
    expected = np.sort(np.linalg.eigvals(weights).real - 1)[::-1]
    # Directions of a pair turn, and their growth with them, within the first and the last turn.
    np.testing.assert_allclose(found.exponents, expected, atol=5e-3)
    np.testing.assert_allclose(found.total, np.trace(weights) - 6, atol=1e-6)
    leaky = mj.NonlinearRNN(weights, np.ones(6), None, np.ones(6), leak=True)
    same = mj.lyapunov_spectrum(leaky, key=KEY, num_intervals=64, transient=1000)
    np.testing.assert_allclose(same.total, found.total, atol=1e-6)


@pytest.mark.thorough
def test_random_networks_are_quiet_below_the_gain_of_one_and_chaotic_above():
    start = np.random.default_rng(1).standard_normal(200)
    options = {"hidden": start, "key": KEY, "rtol": 1e-5, "atol": 1e-6, "transient": 300}
    quiet = mj.lyapunov_spectrum(
        random_network(0.7, 200)[1], num_exponents=1, num_intervals=300, **options
    )
    assert quiet.exponents[0] < -0.1 and quiet.memory_time < 10
    assert np.linalg.norm(quiet.hidden) < 1e-4
    chaotic = mj.lyapunov_spectrum(
        random_network(3.0, 200)[1], num_exponents=1, num_intervals=1500, **options
    )
    assert chaotic.exponents[0] > 3 * chaotic.standard_errors[0] > 0
    assert chaotic.memory_time == np.inf and np.linalg.norm(chaotic.hidden) > 10


@pytest.mark.slow
def test_most_larger_random_networks_are_chaotic():
    """As the width grows, all are; of these one comes to a cycle, with a first exponent of 0."""

    def run(weights, key):
        return mj.lyapunov_spectrum(
            lambda t, h, x: -h + 2 * weights @ jnp.tanh(h),
            key=key,
            hidden=jax.random.normal(key, (300,)),
            num_exponents=1,
            num_intervals=2000,
            interval=0.2,
            rtol=1e-5,
            atol=1e-6,
        )

    weights = np.random.default_rng(0).standard_normal((3, 300, 300)) / np.sqrt(300)
    found = jax.vmap(run)(weights, jax.random.split(KEY, 3))
    signals = np.sort(found.exponents[:, 0] / found.standard_errors[:, 0])
    assert abs(signals[0]) < 2 and np.all(signals[1:] > 5)


# --- Errors and edges ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("system", "start", "low"),
    [
        (henon, lambda u: 0.1 * jnp.stack([u, u]), 0.7),
        # What is gained in one step is lost in the next: errors are given on the safe side.
        (lambda h: 4 * h * (1 - h), lambda u: u[None], 0.1),
    ],
    ids=["henon", "logistic"],
)
def test_standard_errors_are_those_of_repetitions(system, start, low):
    runs = jax.vmap(
        lambda key, u: mj.lyapunov_spectrum(
            system, key=key, hidden=start(u), num_intervals=4000, transient=100, num_exponents=1
        )
    )(jax.random.split(KEY, 100), jax.random.uniform(KEY, (100,)))
    spread = np.std(runs.exponents[:, 0])
    claimed = np.sqrt(np.mean(runs.standard_errors[:, 0] ** 2))
    assert low < spread / claimed < 1.3


@pytest.mark.slow
def test_a_gated_cell_forgets_where_it_started():
    """Two hidden states under the same input come together as fast as the first exponent says."""
    cell = eqx.nn.LSTMCell(2, 5, key=KEY)
    xs = jax.random.normal(jax.random.key(1), (400, 2))
    found = mj.lyapunov_spectrum(cell, key=KEY, xs=xs, transient=100)
    assert found.exponents.shape == (10,) and jax.tree.leaves(found.hidden)[0].shape == (5,)
    pair = jax.tree.map(
        lambda sign: (1e-7 * sign * jnp.ones(5), 1e-7 * sign * jnp.ones(5)), (0.0, 1.0),
        is_leaf=lambda leaf: isinstance(leaf, float),
    )  # fmt: skip
    apart = []
    one, other = pair
    for x in xs[:60]:
        one, other = cell(x, one), cell(x, other)
        apart.append(max(float(jnp.max(jnp.abs(a - b))) for a, b in zip(one, other, strict=True)))
    rate = np.polyfit(np.arange(10, 25), np.log(apart[10:25]), 1)[0]
    np.testing.assert_allclose(found.exponents[0], rate, atol=0.15)
    np.testing.assert_allclose(found.memory_time, -1 / found.exponents[0])
    few = mj.lyapunov_spectrum(cell, key=KEY, xs=xs, transient=100, num_exponents=2)
    np.testing.assert_allclose(few.exponents, found.exponents[:2], atol=1e-3)


def test_under_jit_it_is_the_same():
    run = lambda gain: mj.lyapunov_spectrum(
        lambda h: jnp.tanh(gain * henon(h)), key=KEY, hidden=np.ones(2), num_intervals=100
    )
    plain, jitted = run(1.1), jax.jit(run)(1.1)
    np.testing.assert_allclose(jitted.exponents, plain.exponents, rtol=1e-9)
    assert "traced" not in str(plain) and "exponents" in str(plain)


def test_lost_directions_and_lost_trajectories():
    lost = mj.lyapunov_spectrum(
        lambda h: jnp.stack([0.5 * h[0], 0.0 * h[1]]), key=KEY, hidden=np.ones(2), num_intervals=40
    )
    np.testing.assert_allclose(lost.exponents[0], np.log(0.5))
    assert lost.exponents[1] == -np.inf
    gone = mj.lyapunov_spectrum(
        lambda t, h, x: h**2, key=KEY, hidden=np.ones(1), num_intervals=40, max_steps=64
    )
    assert np.isnan(gone.exponents[0]) and np.isnan(gone.dimension)


def test_dimensions_from_few_exponents():
    make = lambda values, size: mj.LyapunovSpectrum(
        jnp.array(values),
        jnp.zeros(len(values)),
        jnp.zeros((2, len(values))),
        jnp.ones(()),
        jnp.zeros(size),
        size,
    )
    assert make([-1.0, -2.0], 2).dimension == 0
    assert make([1.0, -2.0], 3).dimension == 1.5
    assert make([1.0, 0.5], 2).dimension == 2
    assert np.isnan(make([1.0, -0.5], 3).dimension)
    assert make([1.0, 0.0, -3.0], 3).entropy == 1


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("`num_exponents` must be an integer of at most 2", {"num_exponents": 3}),
        ("`num_batches` must be at most the number of intervals, 5", {"num_intervals": 5}),
        ("`num_batches` must be at most the number of intervals, 0", {"xs": np.ones(30)}),
        ("`num_intervals` must be at most 500", {"xs": np.ones(1500), "num_intervals": 600}),
        ("`interval` must be a number of steps", {"interval": 0.5}),
    ],
)
def test_wrong_arguments_are_named(message, options):
    with pytest.raises(ValueError, match=message):
        mj.lyapunov_spectrum(henon, key=KEY, hidden=np.zeros(2), **options)


def test_single_precision_is_refused():
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(TypeError, match="`hidden` needs float64.*jax_enable_x64"):
            mj.lyapunov_spectrum(henon, key=KEY, hidden=np.zeros(2))
    finally:
        jax.config.update("jax_enable_x64", True)
