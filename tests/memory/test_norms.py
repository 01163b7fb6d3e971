import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.integrate

import memjax

AMPLITUDES, RATES = [1.0, -3.0, 2.5], [0.3, 1.0, 2.0]
KERNEL = memjax.ExponentialSum(np.array(AMPLITUDES), np.array(RATES))


def _sum(t, derivative=0):
    pairs = zip(AMPLITUDES, RATES, strict=True)
    return sum(
        mpmath.mpf(a) * (-mpmath.mpf(w)) ** derivative * mpmath.exp(-mpmath.mpf(w) * t)
        for a, w in pairs
    )


def _absolute(derivative, guesses):
    """The integral of the absolute value between roots that mpmath finds."""
    with mpmath.workdps(30):
        roots = sorted(mpmath.findroot(lambda t: _sum(t, derivative), g) for g in guesses)
        edges = [mpmath.mpf(0), *roots]
        whole = lambda t: _sum(t, derivative - 1)
        ends = [whole(t) for t in edges] + [mpmath.mpf(0)]
        pairs = zip(ends[:-1], ends[1:], strict=True)
        return float(sum(abs(b - a) for a, b in pairs))


def test_norms_of_an_exponential_sum_agree_with_mpmath():
    reference = _absolute(0, (0.3, 2.0))
    variation = float(_sum(0)) + _absolute(1, (0.7, 2.5))
    sup = memjax.functional_norm(KERNEL)
    assert np.isclose(float(sup), reference, rtol=1e-12)
    both = memjax.functional_norm(KERNEL, "sobolev")
    assert np.isclose(float(both), reference + variation, rtol=1e-12)


def test_norm_of_a_polynomial_tail_is_closed():
    # (1 + t/10)^(-1.1) has the integral 100, of which a tenth lies beyond t = 1e11.
    kernel = memjax.PowerLaw(0.1, 10.0)
    assert np.isclose(float(memjax.functional_norm(kernel)), 100, rtol=1e-12)
    assert np.isclose(float(memjax.functional_norm(kernel, "sobolev")), 102, rtol=1e-12)
    finite = 100 * (1 - 11**-0.1)
    assert np.isclose(float(memjax.functional_norm(kernel, horizon=100.0)), finite, rtol=1e-12)


def test_jumps_count_by_their_size():
    kernel = memjax.Box(9.0, 11.0)
    assert np.isclose(float(memjax.functional_norm(kernel, "sobolev")), 2 + 2, rtol=1e-12)
    assert np.isclose(float(memjax.functional_norm(kernel, horizon=10.0)), 1, rtol=1e-12)


def test_distance_of_a_model_from_a_power_law():
    model = memjax.DiagonalLinearRNN(jnp.array([0.5, 0.4]), jnp.array([0.2, 1.0]))
    error = lambda t: (1 + t) ** -1.5 - 0.5 * np.exp(-0.2 * t) - 0.4 * np.exp(-t)
    grid = np.concatenate([[0.0], np.geomspace(1e-4, 1e4, 4000)])
    cells = zip(grid[:-1], grid[1:], strict=True)
    reference = sum(scipy.integrate.fixed_quad(lambda t: abs(error(t)), *c)[0] for c in cells)
    reference += 2 * (1 + grid[-1]) ** -0.5
    found = memjax.functional_distance(memjax.PowerLaw(0.5), model)
    assert np.isclose(float(found), reference, rtol=1e-7)
    itself = memjax.functional_distance(model.kernel(), model)
    assert float(itself) < 1e-13


@pytest.mark.slow
def test_several_outputs_take_the_largest_sum_over_inputs():
    first, second = memjax.ExponentialSum(1.0, 1.0), memjax.ExponentialSum(-1.0, 0.5)
    kernel = memjax.VectorKernel(((first, second), (first, first)))
    assert np.isclose(float(memjax.functional_norm(kernel)), 1 + 2)
    diagonal = memjax.StateSpaceKernel(
        jnp.diag(jnp.array([-1.0, -0.5])), jnp.eye(2), jnp.array([[1.0, -1.0], [1.0, 0.0]])
    )
    assert np.isclose(float(memjax.functional_norm(diagonal)), 1 + 2, rtol=1e-9)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="`kernel` must be integrable"):
        memjax.functional_norm(memjax.Sine())
    with pytest.raises(ValueError, match="`norm` must be"):
        memjax.functional_norm(KERNEL, "l2")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="`kernel` must be a kernel"):
        memjax.functional_norm(3.0)  # pyright: ignore[reportArgumentType]
    gated = memjax.VectorKernel((KERNEL,))
    with pytest.raises(ValueError, match="same inputs and outputs"):
        memjax.functional_distance(gated, KERNEL)


def test_the_old_name_of_the_norm_works_and_warns():
    with pytest.warns(DeprecationWarning, match='norm="sup" is deprecated .* write norm="L1"'):
        old = memjax.functional_norm(KERNEL, "sup")
    assert old == memjax.functional_norm(KERNEL, "L1") == memjax.functional_norm(KERNEL)
