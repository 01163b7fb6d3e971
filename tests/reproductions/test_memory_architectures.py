import matplotlib.figure
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax.reproductions import _memory_architectures as architectures

MEMORY = mj.REPRODUCTIONS["memory-architectures"]


def like(name, decays):
    """Seeds of one architecture that decay as is said, at both stages and for all inputs."""
    dims, seeds = ("architecture", "stage", "inputs", "seed"), len(decays)
    shape, times = (1, 2, 2, seeds), np.arange(20.0)
    fill = lambda value: (dims, np.full(shape, value))
    return xr.Dataset(
        {
            "decay": (dims, np.broadcast_to(decays, shape)),
            "rate": fill(0.5), "power": fill(3.0), "half_time": fill(1.0), "horizon": fill(9.0),
            "loss": (("architecture", "stage", "seed"), np.full((1, 2, seeds), 0.1)),
            "memory": ((*dims, "time"), np.broadcast_to(np.exp(-times), (*shape, 20))),
            "target_memory": ("time", (1 + times) ** -1.5),
        },
        {
            "architecture": [name], "stage": list(architectures.STAGES),
            "inputs": list(architectures.INPUTS), "seed": np.arange(seeds), "time": times,
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    "decays, recurrent, attention",
    [
        (["exponential"] * 3, True, False),
        (["exponential", "finite", "undecided"], True, False),
        (["polynomial"] * 3, False, True),
        (["polynomial", "polynomial", "undecided"], False, True),
        (["exponential", "polynomial", "exponential"], False, False),
        (["undecided", "undecided", "exponential"], None, False),
        (["undecided"] * 3, None, None),
    ],
)
def test_verdicts_follow_the_decays(decays, recurrent, attention):
    found = [verdict.agrees for verdict in MEMORY.check(like("tanh", decays))]
    assert found == [recurrent] * 4
    found = [v.agrees for v in MEMORY.check(like(architectures.POLYNOMIAL, decays))]
    assert found == [attention] * 4


def test_gated_cells_have_a_verdict_of_their_own():
    last = lambda decays: MEMORY.check(like("GRU", decays))[-1].agrees
    assert last(["exponential", "undecided"]) is True
    assert last(["exponential", "polynomial"]) is False
    assert last(["undecided", "undecided"]) is None


@pytest.mark.slow
def test_a_small_model_measured():
    dataset, verdicts = mj.reproduce(
        "memory-architectures",
        progress=False,
        architectures=("tanh",),
        seeds=1,
        updates=3,
        width=2,
        samples=60,
    )
    memory = dataset["memory"].squeeze("architecture")
    assert np.all(np.isfinite(memory)) and np.all(memory[..., 0] > memory[..., -1])
    # More inputs, more memory.
    assert np.all(memory.sel(inputs="up to 1000") >= memory.sel(inputs="up to 1"))
    assert np.all(np.isfinite(dataset["loss"])) and not dataset["diverged"].any()
    assert len(verdicts) == 4
    assert isinstance(MEMORY.plot(dataset), matplotlib.figure.Figure)


def test_a_linear_model_has_the_same_memory_for_all_inputs_and_is_listed_once():
    assert len(MEMORY.check(like("linear", ["exponential"]))) == 2


@pytest.mark.slow
def test_every_architecture_trains_and_has_a_memory():
    dataset = MEMORY.run(False, seeds=1, updates=3, width=4, samples=40)
    assert np.all(np.isfinite(dataset["memory"])) and np.all(np.isfinite(dataset["loss"]))


def test_unknown_architectures_are_refused():
    with pytest.raises(ValueError, match="`architectures` must be one of 'linear'"):
        mj.reproduce("memory-architectures", progress=False, architectures=("RWKV",))
    with pytest.raises(ValueError, match="`samples`"):
        mj.reproduce("memory-architectures", progress=False, samples=8)


def test_the_figure_has_a_panel_a_stage_and_size_of_inputs():
    figure = MEMORY.plot(like("LSTM", ["exponential"] * 2))
    assert [axes.get_title("left") for axes in figure.axes][0] == "(a) at the start, inputs up to 1"
    assert len(figure.axes) == 4
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata()[0], np.exp(-1.0))
