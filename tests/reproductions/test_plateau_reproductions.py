import matplotlib.figure
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax.reproductions import num_failed

FLOWS = mj.REPRODUCTIONS["plateau-flows"]
WIDTH = mj.REPRODUCTIONS["plateau-width"]


def flows_like(**changes):
    """A dataset that follows every prediction exactly, but for what is given."""
    memory = np.arange(8.0, 50.0, 2.0)
    base = np.exp(1.2 * memory)
    law = {
        "gradient flow": base,
        "heavy ball, friction 4": 4 * base,
        "heavy ball, no friction": np.where(memory <= 20, np.exp(0.6 * memory), np.nan),
        "Nesterov": 2 * np.exp(0.6 * memory),
    } | changes
    time = np.stack(list(law.values()))
    return xr.Dataset(
        {
            "time": (("flow", "omega"), time),
            "result": (("flow", "omega"), np.where(np.isfinite(time), 0, -1).astype(np.int8)),
            "time_reached": (("flow", "omega"), time),
            "asymptotics": (("flow", "omega"), np.broadcast_to(base, time.shape)),
        },
        {"flow": list(law), "omega": 1 / memory, "memory": ("omega", memory)},
    )


def words(verdicts, start):
    (verdict,) = (v for v in verdicts if v.published.startswith(start))
    return verdict.agrees


def test_flows_that_follow_the_predictions_agree():
    verdicts = FLOWS.check(flows_like())
    assert [verdict.agrees for verdict in verdicts] == [True] * 4
    assert "1.200" in verdicts[0].found


@pytest.mark.parametrize(
    "flow, time, start",
    [
        ("heavy ball, friction 4", lambda m: np.exp(1.2 * m), "heavy ball with friction"),
        ("heavy ball, no friction", lambda m: np.exp(1.2 * m), "heavy ball, no friction"),
        ("Nesterov", lambda m: np.exp(0.7 * m), "Nesterov"),
        ("gradient flow", lambda m: np.exp(0.5 * m), "gradient flow"),
    ],
)
def test_flows_that_do_not_follow_them_disagree(flow, time, start):
    dataset = flows_like(**{flow: time(np.arange(8.0, 50.0, 2.0))})
    assert words(FLOWS.check(dataset), start) is False


def test_adam_is_judged_on_its_flat_part_its_turn_and_its_return():
    memory = np.arange(8.0, 50.0, 2.0)
    name = "Adam, epsilon 1e-8"
    starts = [f"{name}: flat", f"{name}: then", f"{name}: the plateau returns"]
    judged = lambda time: [words(FLOWS.check(flows_like(**{name: time})), s) for s in starts]
    base = np.exp(1.2 * memory)
    # Its plateau of 1 and epsilon times that of gradient flow meet at ln(1e8) / 1.2 = 15.4.
    assert judged(1 + 1e-8 * base) == [True, True, False]
    assert judged(np.exp(0.3 * memory) + 1e-8 * base)[0] is False
    assert judged(1 + 1.5e-8 * base)[1] is False
    assert judged(np.where(memory < 12, 1.0, np.nan)) == [True, None, None]
    late = np.maximum(1.0, 1e-8 * np.exp(0.6 * memory))
    slow = flows_like(**{"gradient flow": np.exp(0.6 * memory), name: late})
    assert words(FLOWS.check(slow), starts[2]) is True


@pytest.mark.slow
def test_few_flows_and_memories_measured():
    dataset = FLOWS.run(
        False, memories=(8, 9, 10, 24), flows=("gradient flow", "heavy ball, no friction")
    )
    assert dataset["result"].values.tolist() == [[0, 0, 0, 0], [0, 0, 0, -1]]
    assert dataset["result"].dtype == np.int8
    # The multiprecision reference of this start.
    assert float(dataset["time"][0, 0]) == pytest.approx(12.89371238036458615, rel=1e-3)
    assert num_failed(dataset) == 0
    verdicts = FLOWS.check(dataset)
    assert words(verdicts, "gradient flow") is True
    assert isinstance(FLOWS.plot(dataset), matplotlib.figure.Figure)


def width_like(power, seeds=2):
    """Times that fall with a power of the width and grow with the memory."""
    memory, width = np.array([12.0, 20.0]), np.array([2, 4, 8])
    shape = (2, 3, seeds)
    time = np.exp(0.9 * memory)[:, None, None] * width[None, :, None] ** power
    bound = np.exp(0.6 * memory)[:, None, None] * width[None, :, None] ** -0.5
    dims = ("omega", "width", "seed")
    return xr.Dataset(
        {
            "time": (dims, np.broadcast_to(time, shape)),
            "result": (dims, np.zeros(shape, np.int8)),
            "time_reached": (dims, np.broadcast_to(time, shape)),
            "lower_bound": (dims, np.broadcast_to(bound, shape)),
            "decay_rate": (dims, np.full(shape, 0.6)),
        },
        {
            "omega": 1 / memory, "memory": ("omega", memory), "width": width,
            "seed": np.arange(seeds),
        },
    )  # fmt: skip


def test_widths_above_and_below_the_bound():
    held = WIDTH.check(width_like(-0.4))
    assert [verdict.agrees for verdict in held] == [True, True, True]
    assert "m^-0.40" in held[0].found and "m^-0.50" in held[0].found
    assert [verdict.agrees for verdict in WIDTH.check(width_like(-1.0))] == [False, False, True]


def test_a_plateau_that_a_wide_model_does_not_have_disagrees():
    dataset = width_like(-0.4)
    dataset["time"] = dataset["time"].where(dataset["width"] < 8, 1.0)
    assert WIDTH.check(dataset)[-1].agrees is False


def test_widths_without_an_answer_are_not_judged():
    dataset = width_like(-0.4)
    dataset["time"] = dataset["time"].where(dataset["width"] < 4)
    assert [verdict.agrees for verdict in WIDTH.check(dataset)] == [None, None]


@pytest.mark.slow
def test_few_widths_measured():
    dataset, verdicts = mj.reproduce(
        "plateau-width", progress=False, memories=(8, 10), widths=(2,), seeds=(0, 1)
    )
    assert dataset["time"].dims == ("omega", "width", "seed")
    assert num_failed(dataset) == 0
    assert [verdict.agrees for verdict in verdicts[:2]] == [None, None]
    assert isinstance(WIDTH.plot(dataset), matplotlib.figure.Figure)


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match="did you mean 'plateau-width'"):
        mj.reproduce("plateau-widths")


@pytest.mark.parametrize(
    "name, options, match",
    [
        ("plateau-flows", {"flows": ("momentum",)}, "`flows` must be one of 'gradient flow'"),
        ("plateau-flows", {"flows": ("Nesterov",)}, "`flows` must hold 'gradient flow'"),
        ("l21-training", {"targets": ()}, "`targets` must be one of 'exponential sum'"),
        ("l21-training", {"models": ("GRU",)}, "`models` must be one of .* got 'GRU'"),
        ("l21-training", {"optimisers": ("SGD",)}, "`optimisers` must be one of"),
        ("l21-training", {"updates": 1}, "`updates`"),
        ("plateau-width", {"widths": ()}, "`widths` must not be empty"),
    ],
)
def test_bad_options_are_refused(name, options, match):
    with pytest.raises(ValueError, match=match):
        mj.reproduce(name, progress=False, **options)


def test_an_interrupted_sweep_is_no_result(monkeypatch):
    part = xr.Dataset({"result": ("omega", [0, -1])})
    monkeypatch.setattr("memjax.sweeps.PlateauSweep.run", lambda self, **options: part)
    with pytest.raises(KeyboardInterrupt):
        mj.reproduce("plateau-width")


def test_the_figure_of_the_flows_has_a_line_each_and_marks_what_did_not_exit():
    dataset = flows_like()
    dataset["result"][3, -1] = 3
    axes = FLOWS.plot(dataset).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [*dataset["flow"].values, "gradient flow, theory", "did not exit"]
    crosses = [len(np.asarray(line.get_xdata())) for line in axes.lines if line.get_marker() == "x"]
    # Memories that were not asked for are no failures.
    assert crosses == [1]


def test_the_figure_of_the_widths_has_points_medians_and_bounds():
    axes = WIDTH.plot(width_like(-1.0)).axes[0]
    bounds = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert len(bounds) == 2
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any("lower bound" in label for label in labels) and "20" in labels[0]
    # The bound meets the median at the smallest width and is above it at the others.
    medians = [line for line in axes.lines if line.get_label() == labels[0]]
    np.testing.assert_allclose(medians[0].get_ydata()[0], bounds[0].get_ydata()[0])
    assert bounds[0].get_ydata()[-1] > medians[0].get_ydata()[-1]
