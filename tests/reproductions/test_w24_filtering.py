import matplotlib.figure
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax.reproductions import _w24_filtering as filtering

FILTERING = mj.REPRODUCTIONS["w24-filtering"]


def like(teacher, shares, radii, decay="exponential"):
    """Errors that start at a share of the power, and pass a fifth of it at a radius, by width."""
    balls = np.concatenate([[0.0], filtering.RADII])
    curves = [
        np.maximum(share, 0.2 * (balls / radius) ** 2)
        for share, radius in zip(shares, radii, strict=True)
    ]
    errors = 3.0 * np.asarray(curves)[None, None]
    return xr.Dataset(
        {
            "error": (("teacher", "seed", "width", "ball"), errors),
            "power": ("teacher", [3.0]),
            "memory": (("teacher", "lag"), np.exp(-np.arange(100.0))[None]),
            "decay": ("teacher", [decay]),
        },
        {
            "teacher": [teacher], "seed": [0], "width": list(filtering.WIDTHS)[: len(shares)],
            "ball": balls, "lag": np.arange(100),
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    "shares, radii, decay, agrees",
    [
        ((0.1, 0.05, 0.01, 0.001), (0.01, 0.01, 0.01, 0.01), "exponential", True),
        ((0.1, 0.05, 0.01, 0.001), (0.01, 0.01, 0.01, 0.01), "finite", True),
        ((0.1, 0.05, 0.01, 0.001), (0.01, 0.01, 0.01, 0.01), "polynomial", False),
        ((0.1, 0.05, 0.01, 0.001), (0.04, 0.03, 0.02, 0.01), "polynomial", None),
        ((0.9, 0.8, 0.7, 0.6), (0.01, 0.01, 0.01, 0.01), "polynomial", None),
    ],
)
def test_the_filter(shares, radii, decay, agrees):
    (verdict,) = FILTERING.check(like(filtering.RNN, shares, radii, decay))
    assert verdict.agrees is agrees


def test_published_errors_are_compared_by_width():
    dataset = like(filtering.PUBLISHED, (1, 1, 1, 1), (1, 1, 1, 1))
    theirs = [filtering.PUBLISHED_START[width] for width in filtering.WIDTHS]
    dataset["error"][0, 0, :, 0] = theirs
    found = [verdict.agrees for verdict in FILTERING.check(dataset)]
    assert found[:2] == [True, False]
    dataset["error"][0, 0, 2, 0] *= 4
    assert FILTERING.check(dataset)[0].agrees is False


@pytest.mark.thorough
def test_the_published_transformer_has_no_memory_along_time():
    rng = np.random.default_rng(0)
    across = filtering.teacher_memory(filtering.make_transformer(False, rng))
    assert across[0] > 0.01 and np.max(across[1:]) == 0
    along = filtering.teacher_memory(filtering.make_transformer(True, rng))
    assert along[0] > 0.01 and along[-1] > 1e-4


def test_teachers_are_causal_and_their_outputs_of_the_right_shape():
    xs = np.random.default_rng(1).normal(size=(6, filtering._LENGTH))
    later = xs.copy()
    later[:, 60:] = 0
    for name in (filtering.ALONG, filtering.RNN, filtering.LONG_RNN):
        teacher = filtering.TEACHERS[name](np.random.default_rng(2))
        ys = teacher(xs)
        assert ys.shape == xs.shape
        np.testing.assert_allclose(teacher(later)[:, :60], ys[:, :60], atol=1e-5)
        assert np.max(np.abs(teacher(later)[:, 60:] - ys[:, 60:])) > 1e-3


@pytest.mark.slow
def test_a_random_rnn_forgets_exponentially():
    memory = filtering.teacher_memory(filtering.TEACHERS[filtering.RNN](np.random.default_rng(7)))
    assert filtering._tell_decay(memory) == "exponential"
    assert filtering._tell_decay(np.array([1.0] + [0.0] * 99)) == "finite"


@pytest.mark.slow
def test_measured_and_judged():
    dataset, verdicts = mj.reproduce(
        "w24-filtering", progress=False, teachers=(filtering.PUBLISHED,), widths=(4, 8), seeds=1,
        most_updates=12, draws=2, batch=16,
    )  # fmt: skip
    assert len(verdicts) == 4 and verdicts[2].agrees is False
    errors = dataset["error"].values
    assert np.all(np.diff(errors, axis=-1) >= 0) and np.all(dataset["epochs"] >= 2)
    assert isinstance(FILTERING.plot(dataset), matplotlib.figure.Figure)


def test_the_figure_and_wrong_names():
    figure = FILTERING.plot(like(filtering.RNN, (0.1, 0.05, 0.01, 0.001), (0.01,) * 4))
    assert len(figure.axes) == 2
    with pytest.raises(ValueError, match="`teachers` must be one of"):
        mj.reproduce("w24-filtering", progress=False, teachers=("GRU",))
