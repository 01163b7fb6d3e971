import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import memjax
from memjax import viz

RADII = np.array([1e-3, 0.1, 1.0])
MAPS = {
    "exp": (memjax.Exp(2.0), lambda v: np.exp(2 * v), (-20, 5)),
    "softplus": (memjax.Softplus(), lambda v: np.logaddexp(0, v), (-20, 5)),
    "best": (memjax.Best(2.0, 0.3), lambda v: 1 / (2 * v**2 + 0.3), (0, 30)),
    "tanh": (memjax.Tanh(), lambda v: 2 / (1 + np.exp(2 * v)), (-5, 15)),
}


@pytest.mark.parametrize("name", list(MAPS))
def test_closed_forms_of_the_criterion_equal_brute_force(name):
    map, function, (low, high) = MAPS[name]
    found = memjax.stability_criterion(map, RADII)
    assert found.verdict == "stable" and np.isinf(found.stable_up_to)
    v = np.linspace(low, high, 200_001)[:, None]
    for radius, growth in zip(RADII, np.asarray(found.growth), strict=True):
        moved = v + radius * np.linspace(-1, 1, 11)
        brute = np.max(np.abs(function(v) / function(moved) - 1))
        assert np.isclose(growth, brute, rtol=2e-6)


def test_direct_and_inverse_are_stable_over_bounded_rates_only():
    direct = memjax.stability_criterion(memjax.Direct(), RADII)
    assert direct.verdict == "unstable" and np.all(np.isinf(direct.growth))
    assert direct.stable_up_to == 0
    bounded = memjax.stability_criterion(
        memjax.Direct(), np.array([0.01, 0.05, 0.2]), rates=(0.1, 10.0)
    )
    assert bounded.verdict == "stable"
    assert np.allclose(bounded.growth, [1 / 9, 1, np.inf])
    assert np.isclose(bounded.stable_up_to, 0.1)
    inverse = memjax.stability_criterion(memjax.Inverse(), RADII)
    assert inverse.verdict == "unstable"
    bounded = memjax.stability_criterion(memjax.Inverse(), RADII, rates=(0.1, 4.0))
    v = np.linspace(0.5, 1 / np.sqrt(0.1), 100_001)
    brute = [np.max(((v + radius) / v) ** 2 - 1) for radius in RADII]
    assert np.allclose(bounded.growth, brute, rtol=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("map", [memjax.Softplus(), memjax.Best(), memjax.Tanh()])
def test_the_search_agrees_with_the_closed_forms_over_a_range(map):
    closed = map.perturbation_growth(jnp.asarray(RADII), rates=(0.05, 1.5))
    search = memjax.AbstractReparametrisation._largest_growth
    assert np.allclose(search(map, jnp.asarray(RADII), 0.05, 1.5), closed, rtol=1e-6)


@pytest.mark.slow
def test_a_map_of_ones_own_gets_a_verdict():
    class Cube(memjax.AbstractReparametrisation):
        def __call__(self, free):
            return free**3

        def inverse(self, rates):
            return jnp.cbrt(rates)

        def displacement(self, free, change):
            return change * (3 * free**2 + 3 * free * change + change**2)

    cube = memjax.stability_criterion(Cube(), RADII)
    assert cube.verdict == "unstable" and np.all(np.isinf(cube.growth))
    own = memjax.Elementwise(jnp.exp, jnp.log)
    found = memjax.stability_criterion(own, RADII)
    assert found.verdict == "stable"
    assert np.allclose(found.growth, np.expm1(RADII), rtol=1e-6)


def test_crossings_of_power_laws():
    radii = np.geomspace(1e-3, 1, 13)
    errors = np.stack([0.1 + 0 * radii, 10 * radii, np.full_like(radii, 20.0), 1e-3 * radii])
    assert np.allclose(memjax.crossings(radii, errors), [0.01, 0, np.inf], rtol=0.2)
    lines = np.stack([radii**0.5, 3 * radii, np.where(radii > 0.4, np.inf, 0.1 * radii)])
    found = memjax.crossings(radii, np.stack([lines, lines]))
    assert found.shape == (2, 2)
    assert np.allclose(found[0], [1 / 9, 10**-0.25])


@pytest.mark.parametrize(
    ("shrink", "verdict"),
    [(lambda m: 1 / m, "unstable"), (lambda m: 0.3 - 1 / m, "stable"), (lambda m: m**0, "stable")],
)
def test_stability_radius_is_extrapolated(shrink, verdict):
    widths = np.array([8.0, 16, 32, 64])
    radii = np.geomspace(1e-3, 10, 41)
    limit = shrink(widths)
    errors = 0.01 * (1 + (radii / limit[:, None]) ** 2)
    found = memjax.stability_radius(widths, radii, errors, level=0.1)
    assert np.allclose(found.radius, 3 * limit, rtol=0.02)
    assert found.verdict == verdict
    if verdict == "unstable":
        assert np.isclose(found.exponent, 1, atol=0.02)
    assert not np.any(found.below | found.above)


def test_censored_radii_are_flagged_and_few_widths_undecided():
    radii = np.geomspace(1e-2, 1, 9)
    errors = np.stack([radii / 10, radii, 100 * radii])
    found = memjax.stability_radius(np.array([4, 8, 16]), radii, errors, level=0.5)
    assert np.array_equal(found.above, [True, False, False])
    assert np.array_equal(found.below, [False, False, True])
    assert np.isclose(found.radius[1], 0.5) and np.isnan(found.exponent)
    assert found.verdict == "unstable"
    few = memjax.stability_radius(np.array([4, 8]), radii, errors[:2], level=0.05)
    assert few.verdict == "undecided"
    flat = memjax.stability_radius(np.array([4, 8]), radii, errors[:2] / 1e3, level=0.05)
    assert flat.verdict == "stable" and np.all(flat.above)


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match="`reparametrisation` must be"):
        memjax.stability_criterion(jnp.exp, RADII)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`radii` must not be negative"):
        memjax.stability_criterion(memjax.Exp(), -1.0)
    with pytest.raises(ValueError, match="`rates` must be"):
        memjax.stability_criterion(memjax.Exp(), RADII, rates=(2.0, 1.0))
    with pytest.raises(ValueError, match="`errors` must have shape"):
        memjax.crossings(RADII, np.ones((2, 4)))
    with pytest.raises(ValueError, match="`widths` must"):
        memjax.stability_radius(np.array([8, 4]), RADII, np.ones((2, 3)), level=1.0)


def test_figures_of_stability():
    radii = np.geomspace(1e-3, 1, 7)
    errors = np.broadcast_to(radii, (2, 3, 2, 7)) * np.arange(1, 3)[:, None, None, None]
    errors = np.where(errors > 1, np.inf, errors)
    dims = ("kernel", "parametrisation", "width", "radius")
    coords = {"kernel": ["exp", "power"], "width": [4, 8], "radius": radii}
    dataset = xr.Dataset({"error": (dims, errors), "drawn": (dims, errors / 2)}, coords)
    dataset["parametrisation"] = ["direct", "softplus", "best"]
    figure = viz.plot_perturbation_errors(dataset)
    assert len([axes for axes in figure.axes if axes.lines]) == 6
    assert figure.axes[0].get_title(loc="left") == "(a) exp, direct"
    one = viz.plot_perturbation_errors(dataset.isel(kernel=0, parametrisation=0))
    assert len(one.axes) == 1
    growth = np.stack([radii, np.full(7, np.inf)])
    names = {"reparametrisation": ["softplus", "direct"], "radius": radii}
    curves = xr.Dataset({"growth": (("reparametrisation", "radius"), growth)}, names)
    figure = viz.plot_stability_criterion(curves)
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels[:2] == ["softplus", "direct (infinite)"]
    with pytest.raises(ValueError, match="'error'"):
        viz.plot_perturbation_errors(curves)
