import matplotlib.figure
import numpy as np
import pytest
import scipy.integrate
import xarray as xr

import memjax as mj
from memjax.reproductions import _l21_approximation as l21
from memjax.reproductions import _l21_starts as starts

L21 = mj.REPRODUCTIONS["l21-approximation"]
NEURONS, WIDTHS = np.array([2, 4, 8]), np.array([1, 2, 4, 6, 8, 12])
TIMES = np.array([1.0, 10.0, 100.0, 1000.0])


def like(rate=3.0, free=4.0, kept=0.5, slowest=-4.0, own=-0.1, reached=(1, 2), lowest=1.0,
         amplitude=1e12):  # fmt: skip
    """Errors and rates that are powers of the width, and losses that fall to 1 at given times."""
    curse = np.stack([WIDTHS ** -float(p) for p in (free, kept)])[None]
    kinds = [starts.BEST, starts.NEAR, starts.PLATEAU, starts.RANDOM]
    curves = np.full((4, 4), 10.0)
    curves[0] = lowest
    for row, time in zip((1, 3), reached, strict=True):
        curves[row, time:] = 1.0
    return xr.Dataset(
        {
            "error": (("kernel", "neurons"), 20.0 * NEURONS[None] ** -rate),
            "lower_bound": (("kernel", "neurons"), 2.0 * NEURONS[None] ** -rate),
            "bound": (("kernel", "neurons"), 10.0 * NEURONS[None] ** -2.0),
            "power": ("kernel", [rate]),
            "exponential": ("kernel", [1.0]),
            "curse_error": (("omega", "min_rate", "width"), curse),
            "slowest": (("omega", "min_rate", "width"), np.stack([WIDTHS**slowest] * 2)[None]),
            "confluent": (
                ("omega", "min_rate", "width"),
                np.stack([WIDTHS > 99, WIDTHS > 3])[None],
            ),
            "sum_error": ("width", WIDTHS**-4.0),
            "sum_slowest": ("width", WIDTHS**own),
            "curve_loss": (("start", "training_time"), curves),
            "initial_loss": ("start", [1.0, 10.0, 10.0, 10.0]),
            "loss": ("start", curves[:, -1]),
            "result": ("start", np.full(4, 2, np.int8)),
            "best_loss": ((), 1.0),
            "target_norm": ((), 2.0),
            "real_loss": ((), 5.0),
            "real_amplitude": ((), amplitude),
        },
        {
            "kernel": ["Airy"], "neurons": NEURONS, "omega": [0.5], "min_rate": [0.0, 0.05],
            "width": WIDTHS, "start": [f"{kind} 0" for kind in kinds], "kind": ("start", kinds),
            "training_time": TIMES,
        },
    )  # fmt: skip


def agreed(index, **changes):
    return L21.check(like(**changes))[index].agrees


def test_errors_must_fall_as_fast_as_the_theorem_says():
    assert agreed(0) is True
    assert agreed(0, rate=1.5) is False
    found = L21.check(like())[0].found
    assert "1 to 0.25, at most 1" in found
    assert L21.check(like().isel(neurons=[0]))[0].agrees is None


def test_the_curse_is_judged_by_the_power_of_the_width():
    assert agreed(1) is False
    assert agreed(1, free=0.5) is True
    assert agreed(2) is True
    assert agreed(2, kept=3.0) is False
    assert "m^-0.5 from m = 4 on" in L21.check(like())[2].found
    # An error of 0.3 = m^-4 between the widths 1 and 2, and 0.001 between 4 and 6.
    assert "with m = 2, 2, 4, 4, 6, 6" in L21.check(like())[1].found
    assert "> 12" in L21.check(like())[2].found
    doubts = ["confluent from m = 4" in verdict.found for verdict in L21.check(like())[1:3]]
    assert doubts == [False, True]
    assert L21.check(like().isel(width=[0, 1, 2]))[1].agrees is None


def test_the_smallest_rates_tell_the_two_memories_apart():
    assert agreed(3) is True
    assert agreed(3, slowest=-0.1) is False
    assert agreed(3, own=-2.0) is False
    dataset = like()
    dataset["sum_slowest"][2:] = np.nan
    assert L21.check(dataset)[3].agrees is None


def test_starts_are_judged_by_when_they_are_near_the_best_sum():
    np.testing.assert_array_equal(l21.time_to_level(like()), [0, 10, np.inf, 100])
    assert agreed(4) is True
    assert agreed(4, reached=(2, 1)) is False
    assert agreed(4, reached=(4, 4)) is False
    assert L21.check(like().isel(start=[0]))[4].agrees is None
    assert agreed(5) is True
    assert agreed(5, lowest=0.9) is False
    assert agreed(6) is False
    assert agreed(6, amplitude=10.0) is True


def test_the_loss_of_training_is_that_of_white_noise():
    target = mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(0.1)
    model = mj.ComplexDiagonalRNN([1.0, -0.3], [0.2, 0.0], [0.9, 0.11], [0.4, 0.0])

    def square(t):
        wave = np.exp(-0.9 * t) * (np.cos(0.4 * t) + 0.2 * np.sin(0.4 * t))
        kernel = np.exp(-t) + np.exp(-((t - 10) ** 2) / 2)
        return (wave - 0.3 * np.exp(-0.11 * t) - kernel) ** 2

    pieces = [scipy.integrate.quad(square, a, a + 10, epsabs=1e-12)[0] for a in range(0, 200, 10)]
    np.testing.assert_allclose(starts.kernel_distance(target)(model), sum(pieces), rtol=1e-9)


@pytest.mark.slow
def test_a_small_run_measured():
    dataset, verdicts = mj.reproduce(
        "l21-approximation",
        progress=False,
        kernels=(l21.SUM,),
        neurons=(1, 2),
        omegas=(1.0,),
        widths=(1, 2),
        seeds=(),
        updates=20,
    )
    np.testing.assert_array_less(dataset["lower_bound"], dataset["error"])
    np.testing.assert_array_less(dataset["error"], dataset["bound"])
    free, kept = (dataset["curse_error"].isel(omega=0, min_rate=k) for k in (0, 1))
    assert (free <= kept * (1 + 1e-6)).all() and (np.diff(free) < 0).all()
    assert (dataset["slowest"].isel(min_rate=1) >= 0.05).all()
    assert (dataset["curve_loss"] > 0.99 * dataset["best_loss"]).all()
    assert (np.diff(dataset["sum_slowest"]) < 0).all() and (dataset["sum_slowest"] > 1).all()
    assert len(verdicts) == 7
    assert isinstance(L21.plot(dataset), matplotlib.figure.Figure)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="`kernels` must be one of"):
        mj.reproduce("l21-approximation", progress=False, kernels=("exp",))
    with pytest.raises(ValueError, match="`widths`"):
        mj.reproduce("l21-approximation", progress=False, widths=(0,))
