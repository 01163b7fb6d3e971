import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import memjax as mj
from memjax.reproductions import _z24_landscapes as z24
from memjax.reproductions import _z24_modes as modes
from memjax.reproductions._z24_covariance import (
    covariance_formula,
    slope_covariance,
    slope_variance,
)

LAGS = np.arange(4000)


def by_lags(value, goal, normalised):
    """The loss of one mode as a sum over lags, in NumPy."""
    scale = lambda z: np.sqrt(1 - abs(z) ** 2) if normalised else 1.0
    apart = scale(value) * value**LAGS - scale(goal) * goal**LAGS
    return 0.5 * np.sum(np.abs(apart) ** 2)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("goal", [0.36 + 0j, 0.98 * np.exp(0.03j)])
def test_the_loss_of_a_mode_is_a_sum_over_lags(goal, normalised):
    for value in (0.5 - 0.2j, 0.97 * np.exp(0.1j), goal):
        found = modes.mode_loss(jnp.asarray(value), jnp.asarray(goal), normalised)
        assert float(found) == pytest.approx(by_lags(value, goal, normalised), abs=1e-11)


def loss_with_digits(name, goal, normalised):
    """The loss in the coordinates of a map, with mpmath."""
    scale = lambda z: mpmath.sqrt(1 - abs(z) ** 2) if normalised else mpmath.mpf(1)

    def loss(v, u):
        if name == "polar":
            modulus, phase = v, u
        elif name == "exp":
            modulus, phase = mpmath.exp(-mpmath.exp(v)), mpmath.exp(u)
        else:
            modulus = mpmath.tanh(v)
            phase = u * (1 - modulus**2) / (modulus * mpmath.sqrt(1 + modulus**2))
        z = modulus * mpmath.expj(phase)
        own = scale(z) ** 2 / (1 - abs(z) ** 2) + scale(goal) ** 2 / (1 - abs(goal) ** 2)
        return own / 2 - mpmath.re(scale(z) * scale(goal) / (1 - z * mpmath.conj(goal)))

    return loss


@pytest.mark.parametrize("name", z24.MAPS)
@pytest.mark.parametrize("normalised", [False, True])
def test_curvatures_are_second_derivatives(name, normalised):
    modulus, phase = 0.92, 0.01 * np.pi
    with mpmath.workdps(40):
        goal = mpmath.mpf(modulus) * mpmath.expj(mpmath.mpf(phase))
        loss = loss_with_digits(name, goal, normalised)
        place = tuple(map(mpmath.mpf, modes.coordinates_of(name, modulus, phase)))
        exact = [
            [mpmath.diff(loss, place, (2, 0)), mpmath.diff(loss, place, (1, 1))],
            [mpmath.diff(loss, place, (1, 1)), mpmath.diff(loss, place, (0, 2))],
        ]
    found = modes.curvatures(name, modulus * np.exp(1j * phase), normalised)
    np.testing.assert_allclose(found, np.array(exact, float), rtol=1e-7, atol=1e-10)
    if name == "polar" and not normalised:
        slope = float(mj.multiplier_sensitivity(modulus))
        np.testing.assert_allclose(np.diag(found), [slope, modulus**2 * slope], rtol=1e-9)


def test_solutions_along_the_phase_are_counted():
    for modulus in (0.36, 0.68, 0.99):
        scale = (1 - modulus**2) / (modulus * np.sqrt(1 + modulus**2))
        turns = np.arange(-50, 51) * 2 * np.pi + 0.01 * np.pi
        exact = np.sum(np.abs(turns / scale) < 5 * np.pi)
        assert modes.num_minima("optimal", modulus * np.exp(0.01j * np.pi)) == exact
        for name in ("polar", "exp"):
            assert modes.num_minima(name, modulus * np.exp(0.01j * np.pi)) == 1


def by_double_sum(first, second, correlation):
    """E[dh/da dh'/db] as a sum over pairs of lags, in NumPy."""
    lags = np.arange(1, 400)
    sizes = correlation ** np.abs(lags[:, None] - lags)
    return (lags * first ** (lags - 1)) @ sizes @ (lags * second ** (lags - 1))


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.99])
def test_slopes_of_two_modes_are_tied(correlation):
    first, second = 0.8 * np.exp(0.7j), 0.7 * np.exp(-0.6j)
    exact = by_double_sum(first, second, correlation)
    found = slope_covariance(jnp.asarray(first), jnp.asarray(second), correlation)
    assert complex(found) == pytest.approx(exact, rel=1e-9)
    assert covariance_formula(first, second, correlation) == pytest.approx(exact, rel=1e-9)
    printed = covariance_formula(first, second, correlation, 1)
    assert (abs(printed / exact - 1) < 1e-9) == (correlation == 0)
    alone = covariance_formula(first, first.conjugate(), correlation)
    assert alone.real == pytest.approx(float(mj.multiplier_sensitivity(first, correlation)))


@pytest.mark.parametrize("name", z24.MAPS)
def test_a_mode_is_moved_by_adam_and_by_signs(name):
    with mpmath.workdps(30):
        loss = {
            "optimal": loss_with_digits("optimal", mpmath.mpc(modes.GOAL), False),
            "polar": lambda v, u: loss_with_digits("polar", mpmath.mpc(modes.GOAL), False)(
                mpmath.tanh(v), u
            ),
            "exp": lambda v, u: loss_with_digits("polar", mpmath.mpc(modes.GOAL), False)(
                mpmath.tanh(v), mpmath.exp(u)
            ),
        }[name]
        place = modes.coordinates_of(name, 0.99, np.pi / 4, trained=True)
        first, second, way = np.zeros(2), np.zeros(2), [place]
        for count in range(1, 4):
            at = tuple(map(mpmath.mpf, place))
            slope = np.array([float(mpmath.diff(loss, at, order)) for order in ((1, 0), (0, 1))])
            first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
            step = first / (1 - 0.9**count) / np.sqrt(second / (1 - 0.999**count))
            place = place - 1e-3 * step
            way.append(place)
    found, losses = modes.train_mode(name, "Adam", 4)
    np.testing.assert_allclose(found, way, rtol=1e-6)
    assert float(losses[0]) == pytest.approx(float(loss(*way[0])))
    steps = np.diff(modes.train_mode(name, "signs", 4)[0], axis=0)
    np.testing.assert_allclose(np.abs(steps), 1e-3, rtol=1e-9)


def test_variances_of_slopes():
    moduli = np.array([0.3, 0.9, 0.99])
    np.testing.assert_allclose(
        slope_variance(moduli, 0.0), (1 + moduli**2) / (1 - moduli**2) ** 3, rtol=1e-9
    )
    # Inputs that hardly change are like inputs that never do.
    np.testing.assert_allclose(
        slope_variance(moduli, 1 - 1e-9),
        slope_variance(moduli, 1.0),
        rtol=1e-5,
    )


@pytest.mark.thorough
def test_a_small_reproduction_of_landscapes():
    dataset, verdicts = mj.reproduce(
        "z24-landscapes", progress=False, moduli=(0.36, 0.99), updates=100
    )
    assert len(verdicts) == 15
    agreed = [verdict.agrees for verdict in verdicts]
    assert all(agreed[:7])
    # Too few updates to say how one mode ends.
    assert agreed[7:13] == [None] * 6
    assert agreed[13:] == [True, False]
    z24.plot(dataset).draw_without_rendering()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"moduli": (0.5, 1.0)}, "`moduli` must be below 1, got 1"),
        ({"maps": ("tanh",)}, "`maps`"),
        ({"updates": 0}, "`updates`"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        mj.reproduce("z24-landscapes", progress=False, **options)
