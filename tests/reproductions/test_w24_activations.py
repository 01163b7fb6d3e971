import matplotlib.figure
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax.reproductions import _w24_activations as activations

ACTIVATIONS = mj.REPRODUCTIONS["w24-activations"]


def like(name, starts, tenths, losts):
    """Curves of one case, in units of a power of 15, that pass a tenth and all of it at radii."""
    case = activations.CASES[name]
    widths = list(case.widths)[: len(starts)]
    slope = np.log(10) / np.log(np.asarray(losts) / tenths)
    curves = 0.1 * (case.radii / np.asarray(tenths)[:, None]) ** slope[:, None]
    curves = np.maximum(curves, np.asarray(starts)[:, None])
    errors = 15.0 * np.concatenate([np.asarray(starts)[:, None], curves], axis=1)
    return xr.Dataset(
        {
            "error": (("case", "seed", "place", "ball"), errors[None, None]),
            "width": (("case", "place"), [widths]),
            "radius": (("case", "ball"), [[0.0, *case.radii]]),
            "power": ("case", [15.0]),
        },
        {"case": [name], "seed": [0]},
    )


def test_published_radii_agree_with_themselves():
    for name in (activations.RELU, activations.RELU_STABLE):
        published = activations.CASES[name].published
        start, tenth, lost = np.array([published[m] for m in (8, 16, 32)]).T
        verdicts = ACTIVATIONS.check(like(name, start / 15, tenth, lost))
        assert [verdict.agrees for verdict in verdicts[:3]] == [True] * 3
        verdicts = ACTIVATIONS.check(like(name, start / 15, tenth * 3, lost * 3))
        assert [verdict.agrees for verdict in verdicts[:3]] == [True, False, False]


def test_crossings_are_judged():
    apart = ((1e-2, 1e-3, 1e-4), (0.01, 0.02, 0.03), (0.02, 0.04, 0.06))
    cross = ((1e-2, 1e-3, 1e-4), (0.03, 0.02, 0.01), (0.06, 0.04, 0.02))
    claim = lambda name, curves: ACTIVATIONS.check(like(name, *curves))[-1].agrees
    assert claim(activations.SOFTPLUS, cross) is True
    assert claim(activations.SOFTPLUS, apart) is False
    assert claim(activations.SOFTPLUS_STABLE, apart) is True
    assert claim(activations.SOFTPLUS_STABLE, cross) is False
    # Wide models that are no better say nothing.
    assert claim(activations.SOFTPLUS, ((1e-3, 1e-3, 1e-2), *cross[1:])) is None


def test_targets_are_sampled_kernels():
    matrix = activations.target_matrix(activations.CASES[activations.TANH])
    assert matrix.shape == (32, 32)
    np.testing.assert_allclose(matrix[31, 0], 0.1 * (1 + 3.1) ** -1.5, rtol=1e-6)
    assert np.all(np.triu(matrix, 1) == 0)
    matrix = activations.target_matrix(activations.CASES[activations.RELU])
    np.testing.assert_allclose(matrix[99, 9], (1 + 9.0) ** -1.1, rtol=1e-6)


@pytest.mark.slow
def test_measured_and_judged():
    dataset, verdicts = mj.reproduce(
        "w24-activations", progress=False, cases=(activations.TANH,), seeds=1, batch=8,
        updates=20, most_epochs=2, draws=2,
    )  # fmt: skip
    assert len(verdicts) == 1
    assert np.all(np.diff(dataset["error"].values, axis=-1) >= 0)
    assert isinstance(ACTIVATIONS.plot(dataset), matplotlib.figure.Figure)


def test_the_figure_and_wrong_names():
    figure = ACTIVATIONS.plot(
        like(activations.RELU, (1e-2, 1e-3, 1e-4), (0.01, 0.02, 0.03), (0.02, 0.04, 0.06))
    )
    assert figure.axes[0].get_title("left") == "Figure 7:\nrelu, vanilla"
    with pytest.raises(ValueError, match="`cases` must be one of"):
        mj.reproduce("w24-activations", progress=False, cases=("gelu",))
