import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import memjax as mj
from memjax import viz


def sweep_like(codes=(0, 0, 0, 0, 0, 0)):
    """A dataset with an exact law, in the shape that sweeps have."""
    memory = np.array([8.0, 12.0, 16.0, 20.0, 24.0, 28.0])
    time = np.exp(0.9 * memory)[:, None, None] * np.array([1.0, 0.3])[None, :, None]
    result = np.broadcast_to(np.array(codes, np.int8)[:, None, None], time.shape)
    hidden = np.where(result == 0, time, np.where(result == 1, np.inf, np.nan))
    training_time = np.geomspace(1e-2, 1e12, 50)
    curve = np.where(training_time < hidden[..., None], 1.0, np.nan)
    dims = ("omega", "width", "seed")
    return xr.Dataset(
        {
            "time": (dims, hidden),
            "result": (dims, result),
            "time_reached": (dims, time),
            "loss": (dims, np.full(time.shape, 0.98)),
            "decay_rate": (dims, np.full(time.shape, 0.6)),
            "lower_bound": (dims, np.exp(0.6 * memory)[:, None, None] * np.ones(time.shape)),
            "curve_loss": ((*dims, "training_time"), curve),
        },
        {
            "omega": 1 / memory, "memory": ("omega", memory), "width": [2, 4], "seed": [0],
            "training_time": training_time,
        },
    )  # fmt: skip


def labels(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_law_shows_points_fit_and_bound():
    figure = viz.plot_plateau_law(sweep_like())
    axes = figure.axes[0]
    assert isinstance(figure, Figure)
    assert axes.get_yscale() == "log"
    assert labels(figure)[0].startswith("m = 2: slope 0.900")
    assert any("lower bound" in label for label in labels(figure))
    points = axes.lines[0]
    np.testing.assert_allclose(points.get_ydata(), np.exp(0.9 * points.get_xdata()))


def test_law_marks_what_did_not_exit_and_does_not_fit_it():
    figure = viz.plot_plateau_law(sweep_like((0, 0, 0, 0, 1, 4)))
    text = labels(figure)
    assert "unresolved" in text and "converged above the exit level" in text
    assert len(figure.axes[0].lines[0].get_xdata()) == 4


def test_law_without_enough_memories_says_so():
    assert "no fit" in labels(viz.plot_plateau_law(sweep_like((0, 0, 4, 4, 4, 4))))[0]


def test_curves_end_at_the_time_reached():
    figure = viz.plot_loss_curves(sweep_like((0, 0, 0, 0, 0, 4)), memories=3, width=4)
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert "unresolved" in labels(figure)[-1]
    assert len(labels(figure)) == 3
    ends = [np.asarray(line.get_xdata())[-1] for line in axes.lines]
    np.testing.assert_allclose(ends[0], 0.3 * np.exp(0.9 * 8))


def test_figures_refuse_what_is_not_there():
    with pytest.raises(ValueError, match="`width` must be one of"):
        viz.plot_loss_curves(sweep_like(), width=3)
    with pytest.raises(ValueError, match="`delta` must be a dimension"):
        viz.plot_plateau_law(sweep_like(), delta=0.1)
    with pytest.raises(ValueError, match="curve_loss"):
        viz.plot_loss_curves(sweep_like().drop_vars("curve_loss"))


def test_figures_leave_the_users_settings_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    viz.plot_plateau_law(sweep_like())
    assert dict(mpl.rcParams) == before


def test_the_default_fit_is_the_datasets():
    dataset = sweep_like()
    fit = mj.fit_scaling_law(dataset, memory_range=(8, 16))
    line = viz.plot_plateau_law(dataset, fit).axes[0].lines[1]
    np.testing.assert_allclose(line.get_xdata(), [8, 16])


def test_old_names_of_figures_of_reproductions_go_on_for_a_release():
    with pytest.warns(DeprecationWarning, match="REPRODUCTIONS\\['plateau-width'\\].plot"):
        plot = viz.plot_plateau_width
    assert plot is mj.REPRODUCTIONS["plateau-width"].plot
