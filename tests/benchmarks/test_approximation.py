"""The peers of best exponential sums, and the error that they are all measured by."""

import numpy as np
import pytest
import scipy.integrate

pytest.importorskip("mpmath")
benchmark = pytest.importorskip("approximation")


@pytest.fixture(scope="module")
def cases():
    return benchmark.cases()


def test_the_kernels_are_those_of_memjax(cases):
    times = np.array([0.0, 0.3, 4.0, 11.0, 20.0])
    for case in cases.values():
        np.testing.assert_allclose(case.value(times), case.kernel(times), rtol=1e-9, atol=1e-15)


def test_the_transforms_are_those_of_the_kernels(cases):
    for case in cases.values():
        for s in (0.5, 0.5 + 3j):
            part = lambda f: scipy.integrate.quad(f, 0, 80, limit=400, epsabs=1e-12)[0]
            wave = lambda t: complex(np.exp(-s * t) * case.value(np.array([t]))[0])
            expected = part(lambda t: wave(t).real) + 1j * part(lambda t: wave(t).imag)
            np.testing.assert_allclose(case.transform(np.array([s])), expected, rtol=1e-8)


def test_the_error_is_relative_and_infinite_for_unstable_models(cases):
    case = cases["exp-sum"]
    terms = lambda scale: benchmark.Terms(np.full(24, scale / 24), -benchmark.RATES)
    assert benchmark.error(case, terms(1.0)) < 1e-14
    assert benchmark.error(case, terms(0.5)) == pytest.approx(0.5)
    assert benchmark.error(case, benchmark.Terms(np.ones(1), np.ones(1))) is None


def test_conjugate_poles_take_two_neurons_together():
    count = lambda *poles: benchmark.neurons(benchmark.Terms(np.ones(len(poles)), np.array(poles)))
    assert count(-1.0, -2.0 + 1j, -2.0 - 1j) == 3
    assert count(-1.0, -2.0 + 1j) == 3


def test_every_peer_recovers_two_exponentials(cases):
    value = lambda t: np.exp(-t) - 0.5 * np.exp(-3 * t)
    case = cases["exp-sum"]._replace(value=value, transform=lambda s: 1 / (s + 1) - 0.5 / (s + 3))
    data = benchmark.transforms(case)
    for axis in ("real", "imaginary"):
        for refit in (False, True):
            found, said = benchmark.aaa(case, 2, data[axis], refit)
            assert said["unstable"] == 0
            assert benchmark.error(case, found) < 1e-8
    assert benchmark.error(case, benchmark.least_squares(case, 2, 3)[0]) < 1e-6
