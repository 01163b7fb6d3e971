import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import optax
import pytest
import xarray as xr

import memjax as mj
from memjax.reproductions import _w24_perturbation as w24
from memjax.reproductions._training import batched, select, train

W24 = mj.REPRODUCTIONS["w24-perturbation"]
RADII, WIDTHS = w24.RADII, (8, 16, 32, 64)


def with_curves(curves, kernel="power law", name="diagonal", supremum=None, power=1.0, norm="max"):
    """A dataset of one cell, with functions of radius and width as its curves."""
    values = lambda curve: np.array([[curve(radius, m) for radius in RADII] for m in WIDTHS])
    drawn = values(curves)
    dims = ("kernel", "activation", "parametrisation", "width", "seed")
    expand = lambda array: np.asarray(array)[None, None, None, :, None]
    starts = expand([curves(0.0, m) for m in WIDTHS])
    return xr.Dataset(
        {
            "drawn": ((*dims, "radius"), expand(drawn)),
            "error": ((*dims, "radius"), expand(values(supremum or curves))),
            "trained": (dims, starts),
            "slowest_rate": (dims, 0 * starts + 0.1),
            "power": ("kernel", [power]),
        },
        {
            "kernel": [kernel],
            "activation": ["tanh"],
            "parametrisation": [name],
            "width": list(WIDTHS),
            "seed": [0],
            "radius": RADII,
        },
        {"norm": norm},
    )


def verdicts(*args, **kwargs):
    return [verdict.agrees for verdict in W24.check(with_curves(*args, **kwargs))][:2]


STEADY = lambda beta, m: 1e-3 / m + 10 * beta**2
SHRINKING = lambda beta, m: 1e-3 / m + (m * beta / 10) ** 2
LONGER = lambda beta, m: 1e-3 / m + m * beta**2


@pytest.mark.parametrize("kernel, name", [("exponential", "diagonal"), ("power law", "softplus")])
def test_stability_is_judged_by_how_the_radius_falls(kernel, name):
    assert verdicts(STEADY, kernel, name) == [True, True]
    assert verdicts(SHRINKING, kernel, name) == [False, False]
    # What only follows from longer vectors in the same ball is none of the supremum's business.
    assert verdicts(LONGER, kernel, name) == [False, True]
    assert verdicts(lambda beta, m: 2.0 + beta, kernel, name) == [None, None]


def test_longer_vectors_and_larger_matrices_in_the_same_ball():
    assert verdicts(SHRINKING, "exponential", "vanilla") == [False, True]
    assert verdicts(LONGER, "exponential", "vanilla") == [False, True]
    # The ball of the definition is no excuse.
    assert verdicts(LONGER, "exponential", "vanilla", norm="operator") == [False, False]


def test_instability_is_judged_by_how_the_radius_falls():
    assert verdicts(SHRINKING) == [True, True]
    assert verdicts(STEADY) == [False, False]
    assert verdicts(LONGER) == [True, False]
    # Too uneven to tell: the radius jumps up and down.
    uneven = lambda beta, m: 1e-3 + (5 if m in (8, 32) else 100) * m**0.6 * beta**2
    assert verdicts(uneven)[0] is None
    drawn, supremum = W24.check(with_curves(SHRINKING))
    assert "neighbouring curves cross at 0.00" in drawn.found and "m^(-1.00" in drawn.found
    assert "slowest rates 0.1 and 0.1" in supremum.found


def test_what_a_reparametrisation_gains():
    early = lambda beta, m: 1e-4 + (beta / 0.01) ** 2
    late = lambda beta, m: 1e-4 + (beta / 0.1) ** 2
    cells = lambda kernel, direct, softplus: xr.concat(
        [with_curves(direct, kernel), with_curves(softplus, kernel, "softplus")],
        "parametrisation",
        data_vars=["drawn", "error", "trained", "slowest_rate"],
    )
    join = lambda *parts: xr.concat(parts, "kernel")
    gain = lambda *parts: W24.check(join(*parts))[-1]
    same = cells("exponential", late, late)
    assert gain(same, cells("power law", early, late)).agrees is True
    assert gain(same, cells("power law", late, late)).agrees is False
    # A gain for every kernel is no cure of this one.
    assert gain(cells("exponential", early, late), cells("power law", early, late)).agrees is False


def test_target_and_error_are_those_of_the_recursion():
    # A linear model with the multiplier exp(-1) is the exponential kernel.
    matrix = w24.kernel_matrix(w24.KERNELS["exponential"]())
    np.testing.assert_allclose(matrix[3, :5], [*np.exp([-3.0, -2, -1, 0]), 0], rtol=1e-6)
    power = w24.kernel_matrix(w24.KERNELS["power law"]())
    np.testing.assert_allclose(power[99, 0], (1 + 9.9) ** -1.1, rtol=1e-6)
    model = mj.DiagonalNonlinearRNN([-np.expm1(-1.0)], [1.0], None, [1.0], "identity")
    xs = jax.random.normal(jax.random.key(0), (2, 100), jnp.float32)
    error = jax.jit(w24.squared_error)
    assert float(error(model, xs, matrix)) < 1e-10
    # No output: what is left is the weighted mean square of the target.
    silent = eqx.tree_at(lambda m: m.readout_weights, model, jnp.zeros(1))
    ts = np.arange(1, 101.0) ** 2
    expected = np.mean(ts / np.mean(np.append(0, ts)) * np.asarray(xs @ matrix.T) ** 2)
    assert float(error(silent, xs, matrix)) == pytest.approx(expected, rel=1e-5)


def test_a_run_that_diverges_is_flagged_and_the_others_go_on():
    make = lambda key: mj.DiagonalLinearRNN.init(jnp.ones(2), key=key)
    models = batched(make, jax.random.split(jax.random.key(0), 2))
    data = jnp.array([0.1, 1e300])

    def loss(model, key, scale):
        return jnp.sum(jnp.exp(scale * (model.amplitudes - 1) ** 2)) + 0 * jax.random.normal(key)

    result = train(models, loss, optax.sgd(0.1), 20, key=jax.random.key(1), data=data)
    np.testing.assert_array_equal(result.diverged, [False, True])
    assert result.losses.shape == (2, 20) and np.all(np.isfinite(result.losses[0]))
    assert result.losses[0, -1] < result.losses[0, 0] and not np.isfinite(result.losses[1, -1])
    np.testing.assert_array_equal(select(result.models, 1).amplitudes, models.amplitudes[1])


@pytest.mark.slow
def test_a_small_cell_measured():
    dataset = W24.run(
        False,
        activations=("linear",),
        parametrisations=("diagonal", "softplus"),
        widths=(2, 4),
        seeds=2,
        updates=300,
        draws=3,
        restarts=1,
        steps=4,
    )
    assert np.all(dataset["trained"] < dataset["power"])
    assert dataset.attrs["norm"] == "operator"
    # Unstable linear models overflow to infinity.
    errors = dataset["error"].values
    assert np.all(errors[..., 1:] >= errors[..., :-1])
    assert dataset["error"].dims == (
        "kernel", "activation", "parametrisation", "width", "seed", "radius",
    )  # fmt: skip
    # Every row and, once, the gain.
    assert len(W24.check(dataset)) == 2 * 2 * 2 + 1
    assert isinstance(W24.plot(dataset), matplotlib.figure.Figure)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="`kernels` must be one of 'exponential', 'power law'"):
        W24.run(False, kernels=("power",))
    with pytest.raises(ValueError, match="`seeds` must be an integer of at least 1"):
        W24.run(False, seeds=0)


def test_the_figure_has_a_panel_a_cell():
    figure = W24.plot(with_curves(STEADY, power=4.0))
    (axes,) = figure.axes
    full = [
        line for line in axes.lines if line.get_linestyle() == "-" and line.get_label()[0] == "$"
    ]
    assert len(full) == 4
    np.testing.assert_allclose(full[0].get_ydata(), STEADY(RADII, 8) / 4)
