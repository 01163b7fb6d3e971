import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax.reproductions import _f24_scale as f24


@pytest.mark.parametrize("name", f24.PATTERNS)
def test_sizes_are_those_of_sampled_inputs(name):
    ts = 0.1 * np.arange(60)
    pattern = f24.PATTERNS[name](ts)
    assert np.all(np.linalg.eigvalsh(pattern.correlation) > -1e-10)
    model = f24.random_model(3)
    rng = np.random.default_rng(1)
    factor = np.linalg.cholesky(pattern.correlation + 1e-12 * np.eye(ts.size))
    xs = pattern.mean + np.sqrt(pattern.variance) * (rng.normal(size=(20_000, ts.size)) @ factor.T)
    rho = 0.1 * np.asarray(model.kernel()(ts[-1] - ts))
    rho[[0, -1]] /= 2
    squares = (xs @ rho) ** 2
    exact = f24.output_size(model, ts, pattern) ** 2
    assert abs(squares.mean() - exact) < 4 * squares.std() / np.sqrt(20_000)


def test_the_penalty_is_the_measure_of_the_discrete_kernel():
    model = f24._student(jax.random.key(0))
    rng = np.random.default_rng(2)
    xs, ys = f24._sample(rng, 50)
    kernel = np.asarray(model.kernel()(np.arange(100.0)))
    exact = np.mean((xs @ kernel - ys) ** 2) + 0.3 * np.sum(np.abs(kernel)) ** 2
    found = f24._LOSS(model, jax.random.key(0), ((jnp.asarray(xs), jnp.asarray(ys)), 0.3))
    assert float(found) == pytest.approx(exact, rel=1e-10)
    # The noise is what no model can learn.
    target = (1 + np.arange(100.0)) ** -1.5
    many, outputs = f24._sample(np.random.default_rng(3), 20_000)
    assert np.mean((many @ target - outputs) ** 2) == pytest.approx(0.09, rel=0.05)


@pytest.mark.thorough
def test_a_small_run():
    dataset, verdicts = mj.reproduce(
        "f24-scale", progress=False, lengths=(1, 20), penalties=(0, 0.1), seeds=2, updates=300
    )
    assert np.all(dataset["scaled_size"] < 1.02) and np.all(dataset["result"] == 2)
    assert verdicts[0].agrees and len(verdicts) == 3
    f24.plot(dataset).draw_without_rendering()


def test_verdicts():
    axes = {"pattern": ["white", "growing"], "length": [1.0, 10.0], "seed": [0, 1]}
    size = np.array([1.0, 100.0, 1.0, 30.0]).reshape(2, 2, 1) * np.ones(2)
    scaled = np.array([0.5, 0.9, 0.4, 0.8]).reshape(2, 2, 1) * np.ones(2)
    names = {"penalty": [0.0, 0.1], "seed": [0, 1]}
    dataset = xr.Dataset(
        {
            "size": (tuple(axes), size),
            "scaled_size": (tuple(axes), scaled),
            "measure": (tuple(axes), 2 * size**2),
            "train_error": (tuple(names), [[0.1, 0.1], [0.1, 0.1]]),
            "test_error": (tuple(names), [[0.3, 0.31], [0.2, 0.21]]),
        },
        axes | names,
    )
    assert [verdict.agrees for verdict in f24.check(dataset)] == [True, True, True]
    worse = dataset.assign(measure=0.25 * dataset["measure"], scaled_size=dataset["size"])
    worse["test_error"][1] = [0.2, 0.41]
    assert [verdict.agrees for verdict in f24.check(worse)] == [False, False, None]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lengths": (0.0,)}, "`lengths`"),
        ({"patterns": ("pink",)}, "`patterns`"),
        ({"penalties": (-1.0,)}, "`penalties`"),
        ({"seeds": 0}, "`seeds`"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        mj.reproduce("f24-scale", progress=False, **options)
