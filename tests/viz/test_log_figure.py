import numpy as np
import pytest
from matplotlib.figure import Figure

import memjax as mj
from memjax import viz


def found(count=2000, shift=0.0):
    t = np.arange(float(count))
    losses = np.where(t < count / 10, 1.0, 0.4) + 0.01 * np.random.default_rng(0).normal(size=count)
    return mj.find_plateaus(t, losses + shift, floor=shift)


def test_a_log_is_drawn_with_its_plateaus():
    log = found()
    figure = viz.plot_log(log)
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["loss", "plateau, left", "flat at the end"]
    assert [text.get_text() for text in axes.texts] == ["1", "2"]
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_allclose(lines["loss"].get_xdata(), np.maximum(log.steps, 0.5))
    np.testing.assert_array_equal(lines["loss"].get_ydata(), log.losses)
    (plateau,), rest = log.plateaus, log.rest
    np.testing.assert_allclose(lines["plateau, left"].get_xdata(), [0.5, plateau.stop])
    np.testing.assert_allclose(lines["plateau, left"].get_ydata(), plateau.height)
    np.testing.assert_allclose(lines["flat at the end"].get_xdata(), [rest.start, rest.stop])
    figure.draw_without_rendering()


def test_losses_below_zero_have_a_linear_axis():
    assert viz.plot_log(found(shift=-3.0)).axes[0].get_yscale() == "linear"


def test_a_long_log_is_thinned_and_keeps_its_ends():
    log = found(200_000)
    (line,) = [line for line in viz.plot_log(log).axes[0].lines if line.get_label() == "loss"]
    assert line.get_xdata().size < 5000
    assert line.get_ydata().min() == log.losses.min()
    assert line.get_ydata().max() == log.losses.max()
    assert np.all(np.diff(line.get_xdata()) > 0)
    assert line.get_xdata()[-1] == log.steps[-1]


def test_what_is_no_result_is_refused():
    with pytest.raises(TypeError, match="pass that of memjax.find_plateaus"):
        viz.plot_log(np.ones(3))
