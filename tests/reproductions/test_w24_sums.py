import matplotlib.figure
import numpy as np
import pytest

import memjax as mj
from memjax.reproductions import _w24_sums as sums

SUMS = mj.REPRODUCTIONS["w24-sums"]


def test_the_sums_are_near_their_kernels():
    for kernel, values in sums.KERNELS.items():
        amplitudes, multipliers = sums.fit_sum(kernel, 8, 0.1)
        assert multipliers[0] == pytest.approx(0.2) and multipliers[-1] == pytest.approx(0.9)
        found = [sum(amplitudes * multipliers**t) for t in sums.TIMES]
        error = np.max(np.abs(found - values(sums.TIMES)))
        assert error < 0.02
        assert sums.sum_error(amplitudes, multipliers, values(sums.TIMES)) == pytest.approx(error)


@pytest.mark.thorough
def test_the_supremum_is_that_of_all_corners():
    kernel = sums.KERNELS[sums.POWER](sums.TIMES)
    amplitudes, multipliers = sums.fit_sum(sums.POWER, 2, 0.1)
    for radius in (0.01, 0.3):
        grid = np.linspace(-radius, radius, 21)
        moves = np.stack(np.meshgrid(*[grid] * 4), -1).reshape(-1, 2, 2)
        sampled = sums.sum_error(amplitudes + moves[:, 0], multipliers + moves[:, 1], kernel)
        found = sums.worst_errors(amplitudes, multipliers, kernel, np.array([radius]))
        # Zero multipliers are on this grid only by chance.
        np.testing.assert_allclose(found, sampled.max(), rtol=1e-3)
        assert found >= sampled.max() * (1 - 1e-12)


def test_draws_stay_below_the_supremum_and_rise():
    kernel = sums.KERNELS[sums.EXPONENTIAL](sums.TIMES)
    own, radii = sums.fit_sum(sums.EXPONENTIAL, 4, 0.2), np.geomspace(1e-3, 1, 9)
    drawn = sums.drawn_errors(*own, kernel, radii, 10, np.random.default_rng(0))
    worst = sums.worst_errors(*own, kernel, radii)
    assert np.all(drawn <= worst) and np.all(np.diff(drawn) >= 0)


def test_measured_and_judged():
    dataset, verdicts = mj.reproduce("w24-sums", progress=False, widths=(2, 8, 14), seeds=3)
    assert len(verdicts) == 2 * 4 + 2
    agreed = {verdict.published[:30]: verdict.agrees for verdict in verdicts}
    assert all(agrees is not None for agrees in agreed.values())
    bounded = [v for v in verdicts if sums.BOUNDED in v.published]
    assert [v.agrees for v in bounded] == [True, True]
    figure = SUMS.plot(dataset)
    assert isinstance(figure, matplotlib.figure.Figure) and len(figure.axes) == 4
    # Curves that move left, or do not, are told apart.
    moved = dataset.copy(deep=True)
    moved["drawn"][:] = np.inf
    assert all(v.agrees is not True for v in SUMS.check(moved) if "cross" in v.published)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="`kernels` must be one of"):
        mj.reproduce("w24-sums", progress=False, kernels=("exp",))
    with pytest.raises(ValueError, match="`widths`"):
        mj.reproduce("w24-sums", progress=False, widths=(1,))
