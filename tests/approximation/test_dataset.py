"""Kernels beside their sums, and what sampling adds to the error."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj
from memjax.approximation._dataset import between_samples


def decay(norm, samples=None):
    """The sum exp(-t), as if it had been found."""
    return mj.BestExponentialSum(
        model=mj.DiagonalLinearRNN([1.0], [1.0]), error=jnp.array(0.1),
        relative_error=jnp.array(0.1), uncertainty=jnp.array(0.0), lower_bound=jnp.array(0.0),
        active=jnp.array(0), resolved=jnp.array(True), confluent=jnp.array(False),
        noise_limited=jnp.array(False), offset=jnp.array(0.0), statistics=None, order=1,
        norm=norm, samples=samples,
    )  # fmt: skip


def test_dataset_of_samples_and_of_other_kernels():
    best = decay("L2", "linear")
    samples = mj.SampledKernel([0.0, 1.0, 3.0], [1.0, 0.4, 0.1])
    dataset = mj.approximation_dataset(samples, best)
    assert dataset.attrs == {"neurons": 1, "norm": "L2", "error": 0.1, "samples": "linear"}
    assert not np.any(np.isnan(dataset["kernel"]))
    np.testing.assert_allclose(dataset["kernel"].sel(time=[0, 1, 3]), samples.values)
    np.testing.assert_allclose(dataset["fit"], np.exp(-dataset["time"]))
    points = eqx.tree_at(lambda b: b.offset, decay("L2", "points"), jnp.array(0.5))
    dataset = mj.approximation_dataset(samples, points)
    # Points say nothing of what is in between, and the offset belongs to the fit.
    assert int(np.sum(~np.isnan(dataset["kernel"]))) == 3
    np.testing.assert_allclose(dataset["fit"], 0.5 + np.exp(-dataset["time"]))
    power, best = mj.PowerLaw(0.5), decay("L2")
    with pytest.raises(TypeError, match="`best` must be a BestExponentialSum, got 1"):
        mj.approximation_dataset(power, 1)
    with pytest.raises(ValueError, match="`times` must be given for PowerLaw"):
        mj.approximation_dataset(power, best)
    dataset = mj.approximation_dataset(power, best, [0.0, 3.0])
    np.testing.assert_allclose(dataset["kernel"], [1, 4**-1.5])


@pytest.mark.parametrize("norm", ["L1", "L2", "sup"])
def test_what_straight_lines_add(norm):
    # The error of exp(-t) against its own samples, by brute force.
    times = np.append(0, np.geomspace(0.05, 8, 60))
    samples = mj.SampledKernel(times, np.exp(-times))
    fine = np.linspace(0, 8, 400_001)
    error = np.abs(np.exp(-fine) - np.interp(fine, times, np.exp(-times)))
    step = fine[1]
    exact = {"L1": np.sum(error) * step, "L2": np.sqrt(np.sum(error**2) * step), "sup": error.max()}
    assert between_samples(samples, decay(norm, "linear")) == pytest.approx(exact[norm], rel=2e-2)
