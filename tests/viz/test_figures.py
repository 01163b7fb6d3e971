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


def sweep_of_ones_own():
    """An exact law along a delay, of six dimensions, two of them with several other values."""
    delay, width, delta = np.arange(2.0, 14.0, 2.0), np.array([2, 4, 6]), np.array([0.01, 0.1])
    dims = ("delta", "delay", "width", "map", "copy")
    slope = 0.1 * width * (1 + delta[:, None])  # (delta, width)
    log_time = slope[:, None, :, None, None] * delay[:, None, None, None] + np.zeros((1, 2))
    time = np.exp(log_time)
    return xr.Dataset(
        {
            "time": (dims, time),
            "result": (dims, np.zeros(time.shape, np.int8)),
            "time_reached": (dims, time),
            "loss": (dims, np.ones(time.shape)),
            "curve_loss": ((*dims, "training_time"), np.ones((*time.shape, 3))),
        },
        {
            "delay": ("delay", delay, {"long_name": "delay", "units": "steps"}), "width": width,
            "delta": delta, "map": ["exp"], "copy": [0, 1], "training_time": [0.1, 1.0, 10.0],
            "half": ("delay", delay / 2),
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
    with pytest.raises(ValueError, match="`omega` must be a dimension .* other than the axis"):
        viz.plot_plateau_law(sweep_like(), omega=1 / 8)
    with pytest.raises(ValueError, match="curve_loss"):
        viz.plot_loss_curves(sweep_like().drop_vars("curve_loss"))


def test_figures_leave_the_users_settings_alone():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    viz.plot_plateau_law(sweep_like())
    assert dict(mpl.rcParams) == before


def test_the_default_fit_is_the_datasets():
    dataset = sweep_like()
    fit = mj.fit_scaling_law(dataset, axis_range=(8, 16))
    line = viz.plot_plateau_law(dataset, fit).axes[0].lines[1]
    np.testing.assert_allclose(line.get_xdata(), [8, 16])


def test_old_names_of_figures_of_reproductions_go_on_for_a_release():
    with pytest.warns(DeprecationWarning, match="REPRODUCTIONS\\['plateau-width'\\].plot"):
        plot = viz.plot_plateau_width
    assert plot is mj.REPRODUCTIONS["plateau-width"].plot


def test_the_law_along_any_axis_has_its_name_unit_points_and_lines():
    dataset = sweep_of_ones_own()
    figure = viz.plot_plateau_law(dataset, axis="delay")
    axes = figure.axes[0]
    assert axes.get_xlabel() == "delay (steps)" and axes.get_yscale() == "log"
    assert [text.split(" [")[0] for text in labels(figure)] == [
        "m = 2: slope 0.202", "m = 4: slope 0.404", "m = 6: slope 0.606",
    ]  # fmt: skip
    points, line = axes.lines[0], axes.lines[1]
    np.testing.assert_allclose(points.get_ydata(), np.exp(0.202 * points.get_xdata()))
    np.testing.assert_allclose(line.get_ydata(), np.exp(0.202 * line.get_xdata()))
    # What was selected of several is said, and no more.
    assert axes.get_title(loc="left") == "delta = 0.01, copy = 0"


def test_another_dimension_may_have_the_colours():
    figure = viz.plot_plateau_law(sweep_of_ones_own(), axis="half", hue="delta", width=6)
    assert figure.axes[0].get_xlabel() == "half"
    assert figure.axes[0].get_title(loc="left") == "width = 6, copy = 0".replace("width", "m")
    assert [text.split(" [")[0] for text in labels(figure)] == [
        "delta = 0.01: slope 1.212", "delta = 0.1: slope 1.320",
    ]  # fmt: skip


def test_what_a_fit_pools_is_drawn_together_and_its_axis_taken():
    dataset = sweep_of_ones_own()
    fit = mj.fit_scaling_law(dataset, "delay", pool=["copy"])
    axes = viz.plot_plateau_law(dataset, fit, delta=0.1).axes[0]
    assert axes.lines[0].get_xdata().size == 12
    assert axes.get_title(loc="left") == "delta = 0.1"
    assert axes.get_xlabel() == "delay (steps)"
    # A part of the dataset is drawn with the fits of all of it.
    part = viz.plot_plateau_law(dataset.sel(width=4, delta=0.1, map="exp"), fit)
    assert labels(part)[0].startswith("slope 0.440")


def test_all_of_a_dataset_needs_no_title():
    dataset = sweep_of_ones_own().isel(delta=[0], copy=0)
    assert viz.plot_plateau_law(dataset, axis="delay").axes[0].get_title(loc="left") == ""


def test_more_values_than_colours_are_thinned_out_and_said():
    dataset = sweep_of_ones_own().isel(copy=0, map=0, delta=0)
    figure = viz.plot_plateau_law(dataset.interp(width=np.arange(2, 6, 0.25)), axis="delay")
    assert figure.axes[0].get_title(loc="left") == "7 of 16 values of width"
    assert labels(figure)[0].startswith("m = 2: ") and labels(figure)[6].startswith("m = 5.75: ")


def test_one_seed_is_fitted_by_itself():
    dataset = sweep_of_ones_own().isel(delta=0, map=0).rename(copy="seed")
    dataset["time"] = dataset["time"] * np.array([1.0, 3.0])
    axes = viz.plot_plateau_law(dataset, axis="delay", seed=1).axes[0]
    assert axes.lines[0].get_xdata().size == 6
    np.testing.assert_allclose(axes.lines[1].get_ydata(), 3 * np.exp(0.202 * np.array([6.0, 12.0])))
    assert axes.get_title(loc="left") == "seed = 1"


def test_dimensions_without_values_are_drawn_by_their_places():
    dataset = sweep_of_ones_own().drop_vars(["width", "delta", "copy"])
    figure = viz.plot_plateau_law(dataset, axis="delay", delta=1)
    assert labels(figure)[2].startswith("m = 2: slope 0.660")


def test_figures_refuse_fits_and_axes_that_do_not_belong():
    dataset = sweep_of_ones_own()
    fit = mj.fit_scaling_law(dataset, "delay", pool=["copy"])
    with pytest.raises(ValueError, match="`fit` must be against the axis 'half', got one against"):
        viz.plot_plateau_law(dataset, fit, axis="half")
    with pytest.raises(ValueError, match="`fit` must be that of the dataset, got .* for 'width'"):
        viz.plot_plateau_law(dataset, fit.sel(width=[2, 4]))
    with pytest.raises(ValueError, match="`axis` must be given where there are several"):
        viz.plot_plateau_law(dataset)
    with pytest.raises(ValueError, match="`hue` must be one of .* got 'delay'"):
        viz.plot_plateau_law(dataset, axis="delay", hue="delay")
    with pytest.raises(ValueError, match="`hue` .* got 'width'; selected already"):
        viz.plot_plateau_law(dataset, axis="delay", hue="width", width=2)


def test_curves_along_any_axis_say_which_they_are():
    figure = viz.plot_loss_curves(sweep_of_ones_own(), axis="delay", memories=3, width=4)
    assert labels(figure) == ["delay = 2", "delay = 6", "delay = 12"]
    assert figure.axes[0].get_title(loc="left") == "delta = 0.01, m = 4, copy = 0"


def test_cells_that_are_not_there_are_not_drawn():
    dataset = sweep_of_ones_own().isel(delta=0, map=0, copy=0)
    dataset["result"] = dataset["result"].astype(float)
    dataset["result"][-1], dataset["time"][-1] = np.nan, np.nan
    figure = viz.plot_plateau_law(dataset, axis="delay")
    assert figure.axes[0].lines[0].get_xdata().size == 5
    assert labels(viz.plot_loss_curves(dataset, axis="delay"))[-1] == "delay = 12 (not finished)"
