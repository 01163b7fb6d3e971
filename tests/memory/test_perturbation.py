import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import memjax
from memjax.memory._ascent import _find_corner, _project

RADII = np.array([0.01, 0.05, 0.15])
TARGET = memjax.PowerLaw(0.5)
KEY = jax.random.key(0)
MAPS = {
    "direct": (memjax.Direct(), lambda v: v),
    "softplus": (memjax.Softplus(), lambda v: np.log1p(np.exp(v))),
    "exp": (memjax.Exp(), np.exp),
    "best": (memjax.Best(), lambda v: 1 / (v**2 + 0.1)),
}
NODES = np.concatenate([[0.0], np.geomspace(1e-3, 2e3, 600)])


def _model(map, amplitudes=(0.6, -0.3), rates=(0.3, 1.5)):
    return memjax.DiagonalLinearRNN(jnp.array(amplitudes), jnp.array(rates), map)


def _distance(a, w):
    """The L1 distance from (1 + t)^(-3/2), vectorised over leading axes of `a` and `w`.

    Between its sign changes, found on nodes and by bisection, the integral is a closed form.
    """
    error = lambda t: (
        (1 + t) ** -1.5 - np.sum(a[..., None] * np.exp(-w[..., None] * t[..., None, :]), axis=-2)
    )
    decays = lambda t: (a / w)[..., None] * np.expm1(-w[..., None] * t[..., None, :])
    whole = lambda t: 2 - 2 * (1 + t) ** -0.5 + np.sum(decays(t), axis=-2)
    nodes = np.broadcast_to(NODES, (*a.shape[:-1], NODES.size))
    left, right = nodes[..., :-1], nodes[..., 1:]
    start = error(left) > 0
    for _ in range(20):
        middle = (left + right) / 2
        same = (error(middle) > 0) == start
        left, right = np.where(same, middle, left), np.where(same, right, middle)
    points = np.sort(np.concatenate([nodes, left], axis=-1), axis=-1)
    values = whole(points)
    total = 2 - np.sum(a / w, axis=-1)
    return np.sum(np.abs(np.diff(values)), axis=-1) + np.abs(total - values[..., -1])


def _brute_force(rates, amplitudes, free, radius, norm, points, refined):
    """A grid over the ball, the best points of which are improved by SciPy."""
    axis = np.linspace(-1, 1, points)
    if norm == "max":
        moves = np.stack(np.meshgrid([-1, 1], [-1, 1], axis, axis, indexing="ij"), -1)
    else:
        angles = np.linspace(0, 2 * np.pi, 4 * points, endpoint=False)
        angle, *rest = np.meshgrid(angles, axis, axis, indexing="ij")
        moves = np.stack([np.cos(angle), np.sin(angle), *rest], -1)
    moves = np.reshape(moves, (-1, 4)) * radius
    # A screening on few nodes, which need not be accurate.
    t = np.concatenate([[0.0], np.geomspace(1e-2, 1e3, 150)])
    a, w = amplitudes + moves[:, :2], rates(free + moves[:, 2:])
    error = (1 + t) ** -1.5 - np.einsum("nk,nkt->nt", a, np.exp(-w[..., None] * t))
    order = np.argsort(-np.trapezoid(np.abs(error), t, axis=1))[:refined]

    def loss(x):
        if norm == "max":
            change = np.clip(x[:2], -radius, radius)
        else:
            change = x[:2] * min(1, radius / np.linalg.norm(x[:2]))
        moved = np.clip(x[2:], -radius, radius)
        return -_distance(amplitudes + change, rates(free + moved))

    options = {"xatol": 1e-9, "fatol": 1e-11, "maxfev": 300}
    found = [
        scipy.optimize.minimize(loss, moves[k], method="Nelder-Mead", options=options)
        for k in order
    ]
    return max(-fit.fun for fit in found)


def _compare(name, norm, radii, points, refined):
    map, rates = MAPS[name]
    model = _model(map)
    found = memjax.perturbation_error(model, TARGET, radii, ball=norm, draws=100, key=KEY)
    assert np.all(found.exact)
    amplitudes, free = np.asarray(model.amplitudes), np.asarray(model.free_rates)
    for index, radius in enumerate(radii):
        best = _brute_force(rates, amplitudes, free, radius, norm, points, refined)
        assert np.isclose(float(found.error[index]), best, rtol=1e-6)
        at = eqx.apply_updates(model, jax.tree.map(lambda x: x[index], found.perturbation))
        again = _distance(np.asarray(at.amplitudes), np.asarray(at.rates))
        assert np.isclose(again, found.error[index], rtol=1e-9)
    assert np.all(found.drawn <= found.error) and np.all(found.error <= found.upper)
    return found


def test_supremum_equals_brute_force_at_width_two():
    _compare("direct", "max", RADII, 15, 3)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["max", "operator"])
@pytest.mark.parametrize("name", list(MAPS))
def test_supremum_equals_a_fine_brute_force_grid(name, norm):
    _compare(name, norm, RADII, 61, 20)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["max", "operator"])
@pytest.mark.parametrize("width", [2, 5, 8])
def test_supremum_is_never_below_a_hundred_thousand_draws(width, norm):
    rates = jnp.exp(jnp.linspace(-2, 1, width))
    for seed in range(3):
        amplitudes = jax.random.normal(jax.random.key(seed), (width,)) / width
        model = memjax.DiagonalLinearRNN(amplitudes, rates, memjax.Softplus())
        found = memjax.perturbation_error(
            model, TARGET, RADII, ball=norm, draws=100_000, key=jax.random.key(seed)
        )
        assert np.all(found.error >= found.drawn)
        assert np.all(found.error <= found.upper)


def test_a_direct_model_that_reaches_the_axis_has_an_infinite_error():
    model = _model(memjax.Direct())
    found = memjax.perturbation_error(
        model, TARGET, np.array([0.1, 0.299, 0.3]), draws=100, key=KEY
    )
    assert np.array_equal(np.isinf(found.error), [False, False, True])
    worst = jax.tree.map(lambda x: x[-1], found.perturbation)
    assert np.min(model.free_rates + worst.free_rates) <= 0


def test_projections_and_corners_of_the_operator_norm():
    block = np.asarray(jax.random.normal(KEY, (4, 3)))
    projected = _project(jnp.asarray(block), "matrix", jnp.asarray(0.5))
    assert np.isclose(np.linalg.norm(projected, 2), 0.5)
    corner = np.asarray(_find_corner(jnp.asarray(block), "matrix"))
    # The nuclear norm is dual to the spectral one.
    assert np.isclose(np.sum(corner * block), np.linalg.norm(block, "nuc"))
    assert np.isclose(np.linalg.norm(corner, 2), 1)


@pytest.mark.parametrize("norm", ["max", "operator"])
def test_ascent_finds_the_supremum_of_a_convex_function(norm):
    # Over a ball the largest |x - c|^2 lies on the far side.
    offset = jnp.array([0.3, -0.2, 0.1])
    loss = lambda model: jnp.sum((model["x"] - offset) ** 2)
    model = {"x": jnp.zeros(3)}
    found = memjax.perturbation_error(
        model, loss, RADII, ball=norm, restarts=2, steps=10, draws=20, key=KEY
    )
    size = float(jnp.linalg.norm(offset))
    farthest = {
        "max": np.sum((np.abs(offset) + RADII[:, None]) ** 2, axis=1),
        "operator": (size + RADII) ** 2,
    }
    assert np.allclose(found.error, farthest[norm], rtol=1e-5)
    assert np.all(found.drawn < found.error)


@pytest.mark.slow
def test_ascent_beats_draws_on_a_nonlinear_model_vmapped_over_seeds():
    ts = jnp.arange(20.0)
    xs = jax.random.normal(KEY, (4, 20))
    loss = memjax.SampledPathLoss(TARGET, ts, xs, method="residual")
    keys = jax.random.split(KEY, 2)
    models = eqx.filter_vmap(lambda key: memjax.NonlinearRNN.init(4, key=key))(keys)
    measure = lambda model, key: memjax.perturbation_error(
        model, loss, RADII, restarts=2, steps=10, draws=20, key=key
    )
    found = eqx.filter_vmap(measure)(models, keys)
    assert found.error.shape == (2, 3)
    assert np.all(found.drawn <= found.error) and np.all(np.diff(found.error, axis=1) >= 0)
    for seed in range(2):
        pick = lambda tree: jax.tree.map(lambda x: x[seed], eqx.filter(tree, eqx.is_array))
        model = eqx.combine(pick(models), models)
        worst = jax.tree.map(lambda x: x[-1], pick(found.perturbation))
        assert all(np.max(np.abs(x)) <= RADII[-1] * (1 + 1e-12) for x in jax.tree.leaves(worst))
        assert np.isclose(loss(eqx.apply_updates(model, worst)), found.error[seed, -1])


def test_losses_that_are_not_finite_count_as_infinite():
    loss = lambda model: jnp.where(model["x"][0] > 0.04, jnp.nan, model["x"][0])
    found = memjax.perturbation_error(
        {"x": jnp.zeros(1)}, loss, RADII, restarts=2, steps=5, draws=5, key=KEY
    )
    assert np.array_equal(np.isinf(found.error), [False, True, True])
    assert np.array_equal(found.exact, [False, True, True])


def test_wrong_arguments_are_refused():
    model = _model(memjax.Softplus())
    with pytest.raises(ValueError, match="`radii` must increase"):
        memjax.perturbation_error(model, TARGET, np.array([0.2, 0.1]), key=KEY)
    with pytest.raises(ValueError, match="`ball` must be"):
        memjax.perturbation_error(model, TARGET, RADII, ball="l2", key=KEY)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="DiagonalLinearRNN"):
        memjax.perturbation_error(memjax.NonlinearRNN.init(2, key=KEY), TARGET, RADII, key=KEY)
    with pytest.raises(ValueError, match="`target` must be integrable"):
        memjax.perturbation_error(model, memjax.Sine(), RADII, key=KEY)
