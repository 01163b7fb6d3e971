"""Figures of approximations, from small datasets."""

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax import viz


def errors_like():
    m = np.array([2, 4, 8])
    error = np.stack([np.exp(-m / 2), np.exp(-1.0 * m)])
    return xr.Dataset(
        {
            "error": (("kernel", "neurons"), error),
            "lower_bound": (("kernel", "neurons"), [[0.1, 0.01, 0.0], [0.1, 0.001, 1e-4]]),
            "bound": (("kernel", "neurons"), [[9 / 2, 9 / 4, 9 / 8], [np.nan] * 3]),
        },
        {"kernel": ["bump", "Airy"], "neurons": m},
    )


def named(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_errors_stand_beside_bounds_in_a_panel_a_kernel():
    dataset = errors_like()
    figure = viz.plot_approximation_errors(dataset)
    first, second = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["(a) bump", "(b) Airy"]
    assert first.get_yscale() == "log" and first.get_xscale() == "linear"
    assert named(figure) == ["theorem's bound, $C = 1$", "best sum found", "no sum falls below"]
    bound, error, lower = first.lines
    np.testing.assert_allclose(error.get_ydata(), dataset["error"][0])
    # Bounds that are 0 or missing are not drawn.
    assert bound.get_xdata().size == 3 and lower.get_xdata().tolist() == [2, 4]
    assert np.asarray(second.lines[0].get_xdata()).size == 0
    assert viz.plot_approximation_errors(dataset, log_neurons=True).axes[0].get_xscale() == "log"


def test_errors_of_one_kernel_and_of_several_norms():
    dataset = errors_like()[["error"]]
    assert len(viz.plot_approximation_errors(dataset.isel(kernel=0)).axes) == 1
    one = dataset.isel(kernel=0, drop=True)
    assert viz.plot_approximation_errors(one).axes[0].get_title(loc="left") == ""
    norms = xr.concat([dataset, 2 * dataset], xr.Variable("norm", ["L1", "sup"]))
    figure = viz.plot_approximation_errors(norms)
    assert figure.axes[2].get_title(loc="left") == "(c) bump, sup"
    np.testing.assert_allclose(figure.axes[2].lines[0].get_ydata(), 2 * dataset["error"][0])


def test_rates_are_drawn_with_their_fit():
    m = jnp.array([2, 4, 6, 8])
    rate = mj.ApproximationRate(
        alpha=jnp.array([1]), beta=jnp.array([0.5]), gamma=jnp.array([2.0]), widths=m,
        bound=4.0 / m, errors=3 * jnp.exp(-0.7 * m), lower_bounds=jnp.exp(-0.7 * m),
        exponent=jnp.array(3.0), exponential=jnp.array(0.7), faster_than_powers=jnp.array(True),
    )  # fmt: skip
    figure = viz.plot_approximation_errors({"bump": rate})
    assert named(figure)[1] == "fitted rate"
    fitted, error = figure.axes[0].lines[1:3]
    np.testing.assert_allclose(fitted.get_ydata(), error.get_ydata(), rtol=1e-12)
    with pytest.raises(TypeError, match="approximation rates, got 3"):
        viz.plot_approximation_errors({"bump": 3})  # pyright: ignore
    with pytest.raises(ValueError, match="at least one rate"):
        viz.plot_approximation_errors({})


def test_kernel_fit_and_residual():
    times = np.geomspace(0.1, 100, 50)
    kernel, fit = np.exp(-times), np.exp(-times) + 1e-3
    dataset = xr.Dataset(
        {"kernel": ("time", kernel), "fit": ("time", fit)}, {"time": times}, {"neurons": 3}
    )
    above, below = viz.plot_approximation(dataset, log_time=True).axes
    assert above.get_xscale() == below.get_xscale() == "log"
    assert above.get_legend().get_texts()[1].get_text() == "3 neurons"
    np.testing.assert_allclose(np.asarray(below.lines[1].get_ydata()), -1e-3)


def test_neurons_needed_marks_what_was_not_reached():
    omega, error = np.array([0.5, 1.0]), np.array([1e-3, 1e-2, 1e-1])
    neurons = np.array([[[9, 4, 2], [6, 3, 2]], [[0, 8, 2], [9, 4, 2]]])
    dataset = xr.Dataset(
        {"neurons": (("rates", "omega", "error"), neurons)},
        {"rates": ["free", "bounded"], "omega": omega, "error": error},
    )
    free, bounded = viz.plot_neurons_needed(dataset).axes
    assert len(free.lines) == 4 and len(bounded.lines) == 5
    np.testing.assert_allclose(np.asarray(free.lines[0].get_ydata()), [2, 4, 9])
    # The published growth of omega = 1/2 is quadratic, and begins at the points.
    np.testing.assert_allclose(np.asarray(free.lines[1].get_ydata()), [2, 200, 20000])
    end = bounded.lines[1]
    assert end.get_marker() == bounded.lines[0].get_marker() and end.get_xdata()[0] == 1e-3
    assert len(viz.plot_neurons_needed(dataset.isel(rates=0, drop=True)).axes) == 1


@pytest.mark.parametrize(
    "draw", [viz.plot_approximation, viz.plot_approximation_errors, viz.plot_neurons_needed]
)
def test_what_is_not_there_is_refused(draw):
    with pytest.raises(ValueError, match="must have .*got "):
        draw(xr.Dataset({"other": ("x", [1.0])}))
