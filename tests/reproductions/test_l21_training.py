import matplotlib.figure
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax.reproductions._l21_training import longest_plateau

TRAINING = mj.REPRODUCTIONS["l21-training"]

TIMES = np.geomspace(1, 1e4, 400)


def steps(*levels):
    """A loss that starts at 1 and has steps down at the times given, of level each."""
    loss = np.ones_like(TIMES)
    for time, level in levels:
        loss = np.where(time <= TIMES, level, loss)
    return loss


def with_curve(loss, target, initial=1.0):
    dims = ("target", "model", "optimiser")
    return xr.Dataset(
        {
            "curve_loss": ((*dims, "training_time"), loss[None, None, None]),
            "initial_loss": (dims, np.full((1, 1, 1), initial)),
            "power": ("target", [1.0]),
            "result": (dims, np.full((1, 1, 1), 2, np.int8)),
        },
        {"target": [target], "model": ["m"], "optimiser": ["o"], "training_time": TIMES},
    )


def verdict(loss, target):
    (found,) = TRAINING.check(with_curve(loss, target))
    return found.agrees


def test_the_longest_stretch_of_a_stair_is_found():
    start, end, level, left = longest_plateau(TIMES, steps((10, 0.8), (1000, 0.1)), 1.0)
    assert (level, left) == (0.8, True)
    assert start == pytest.approx(10, rel=0.03) and end == pytest.approx(1000, rel=0.03)
    # What precedes the first fall, and what is below 5 %, does not count.
    assert longest_plateau(TIMES, steps((1000, 0.8), (1100, 0.01)), 1.0)[0] > 990
    assert np.isnan(longest_plateau(TIMES, steps(), 1.0)[0])
    assert not longest_plateau(TIMES, steps((10, 0.8), (1000, 0.7)), 1.0)[3]


def test_a_slope_is_no_plateau():
    start, end, _, _ = longest_plateau(TIMES, TIMES**-0.5, 1.0)
    assert end / start == pytest.approx(0.9**-2, rel=0.05)


@pytest.mark.parametrize(
    "loss, plateau, none",
    [
        (steps((10, 0.8), (1000, 0.1)), True, False),
        (TIMES**-0.5, False, True),
        # At once below all that counts.
        (steps((1, 0.01)), False, True),
        # Too short a stretch, in a training that is not done: none yet.
        (TIMES**-0.1, False, None),
        # A level that is not left, and a loss that never falls.
        (steps((10, 0.8)), None, None),
        (steps(), None, None),
        (np.full(TIMES.size, np.nan), None, None),
    ],
)
def test_verdicts_follow_the_curve_not_the_wish(loss, plateau, none):
    assert verdict(loss, "Airy") is plateau
    assert verdict(loss, "Lorenz-96") is plateau
    assert verdict(loss, "exponential sum") is none


SMALL = {"optimisers": ("gradient descent",), "updates": 30, "width": 4, "batch": 2}


@pytest.mark.slow
def test_a_small_training_measured():
    dataset, verdicts = mj.reproduce(
        "l21-training",
        progress=False,
        targets=("exponential sum",),
        models=("linear RNN",),
        **SMALL,
    )
    curves = dataset["curve_loss"].squeeze().values
    assert curves.shape == (30,) and curves[-1] < 0.3 * curves[0]
    assert curves[0] < float(dataset["initial_loss"].squeeze())
    assert len(verdicts) == 1 and "updates" in verdicts[0].found
    assert isinstance(TRAINING.plot(dataset), matplotlib.figure.Figure)


@pytest.mark.slow
def test_every_target_and_model_trains():
    dataset = TRAINING.run(False, **SMALL)
    assert np.all(np.isfinite(dataset["curve_loss"]))
    # Lorenz-96 is normalised over the sampled paths.
    assert float(dataset["power"].sel(target="Lorenz-96")) == pytest.approx(1.0)
    assert len(TRAINING.check(dataset)) == 6
    assert len(TRAINING.plot(dataset).axes) == 6


def test_the_figure_is_relative_to_the_power_of_the_target():
    dataset = with_curve(steps((10, 0.8)), "Airy")
    dataset["power"][:] = 4.0
    axes = TRAINING.plot(dataset).axes[0]
    assert axes.get_title("left") == "Airy, m"
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata())[-1], 0.2)
