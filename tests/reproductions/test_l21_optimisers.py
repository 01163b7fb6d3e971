import matplotlib.figure
import numpy as np
import pytest
import xarray as xr
from scipy.integrate import quad

import memjax as mj
from memjax.reproductions import num_failed
from memjax.reproductions._l21_optimisers import OPTIMISERS

L21 = mj.REPRODUCTIONS["l21-optimisers"]
MEMORY = np.arange(6.0, 32.0, 2.0)
BASE = np.exp(0.9 * MEMORY)


def like(**changes):
    """A dataset of updates that follow their flows exactly, but for the times given."""
    flows = {
        "gradient descent": BASE,
        "momentum": 0.3 * BASE,
        "Adam": 1e-8 * BASE,
    }
    steps = np.array([OPTIMISERS[name].time_step for name in flows])
    flow_time = np.stack(list(flows.values()))
    own = flows | {"Adam": 1 + 1e-8 * BASE} | changes
    times = np.stack([own[name] for name in flows])
    dims = "optimiser", "omega"
    updates = times / steps[:, None]
    return xr.Dataset(
        {
            "updates": (dims, updates),
            "updates_reached": (dims, updates),
            "flow_time": (dims, flow_time),
            "gradient_flow_time": ("omega", BASE),
            "time_step": ("optimiser", steps),
            "result": (dims, np.where(np.isfinite(updates), 0, -1).astype(np.int8)),
        },
        {"optimiser": list(flows), "omega": 1 / MEMORY, "memory": ("omega", MEMORY)},
    )


def judged(dataset, start):
    (verdict,) = (v for v in L21.check(dataset) if v.published.startswith(start))
    return verdict.agrees


def test_updates_that_follow_their_flows_agree():
    verdicts = L21.check(like())
    assert len(verdicts) == 8
    growth = [v for v in verdicts if "grow at least" in v.published]
    # Adam's plateau is back from 1/omega = 20.5 on, where it is half of all.
    assert [v.agrees for v in growth] == [True] * 3
    assert "5 longest memories, 22 to 30" in growth[0].found
    assert "3 longest memories, 26 to 30" in growth[2].found
    assert judged(like(), "gradient descent: the plateau of gradient flow") is True
    assert judged(like(), "momentum: the plateau of the heavy ball of friction 0.316") is True
    assert judged(like(), "Adam, epsilon 1e-08: flat") is True
    assert judged(like(), "Adam, epsilon 1e-08: then") is True


@pytest.mark.parametrize("name", list(OPTIMISERS))
def test_updates_that_do_not_disagree(name):
    slow = like(**{name: 1.2 * like()["flow_time"].sel(optimiser=name).values})
    start = f"{name}: the plateau of" if name != "Adam" else "Adam, epsilon 1e-08: then"
    assert judged(slow, start) is False
    flat = like(**{name: 1e-3 * np.exp(0.3 * MEMORY) + 0 * BASE})
    grows = judged(flat, f"{name}: plateaus grow")
    # Updates of Adam that are below epsilon times gradient flow's are all past its return.
    assert grows is False


def test_what_was_not_reached_is_not_judged():
    few = like(momentum=np.where(MEMORY <= 8, BASE, np.nan))
    assert judged(few, "momentum: plateaus grow") is None
    none = like(momentum=np.full(MEMORY.size, np.nan))
    assert judged(none, "momentum: the plateau of") is None


def test_the_figure_has_marks_lines_and_crosses():
    dataset = like()
    dataset["result"][1, -1] = 3
    axes = L21.plot(dataset).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[:2] == ["gradient descent: gradient flow", "gradient descent: updates"]
    crosses = [len(np.asarray(x.get_xdata())) for x in axes.lines if x.get_marker() == "x"]
    assert crosses == [1] and labels[-1] == "did not exit"
    line = next(x for x in axes.lines if x.get_label() == labels[0])
    np.testing.assert_allclose(line.get_ydata(), BASE / 0.1)


def count(name, memory):
    """Updates until the loss has fallen by 2 %, by NumPy and quadrature."""
    bump = lambda t: np.exp(-((t - memory) ** 2) / (2 * 0.5**2))
    ends = memory - 8 * 0.5, memory + 8 * 0.5
    moment = lambda w, k: quad(lambda t: t**k * np.exp(-w * t) * bump(t), max(ends[0], 0), ends[1])[
        0
    ]
    both = lambda t: (np.exp(-t) + bump(t)) ** 2
    norm = sum(quad(both, *span, limit=200)[0] for span in ((0, ends[0]), ends, (ends[1], 80)))

    def look(theta):
        a, w = theta[:2], theta[2:]
        total = w[:, None] + w
        transform = np.array([1 / (1 + x) + moment(x, 0) for x in w])
        slope = np.array([-1 / (1 + x) ** 2 - moment(x, 1) for x in w])
        value = a @ (1 / total) @ a - 2 * a @ transform + norm
        by_a = 2 * ((1 / total) @ a - transform)
        by_w = -2 * a * ((1 / total**2) @ a + slope)
        return value, np.concatenate([by_a, by_w])

    theta = np.array([1.0, 0.0, 1.0, 0.6])
    first, _ = look(theta)
    mean = square = np.zeros(4)
    for update in range(10_000):
        value, gradient = look(theta)
        if value <= 0.98 * first:
            return update
        if name == "Adam":
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            k = update + 1
            theta = theta - 1e-3 * (mean / (1 - 0.9**k)) / (np.sqrt(square / (1 - 0.999**k)) + 1e-8)
        else:
            mean = (0.9 if name == "momentum" else 0.0) * mean + gradient
            theta = theta - 0.1 * mean
    raise AssertionError("not left")


@pytest.mark.slow
def test_updates_are_those_counted_by_numpy():
    names = tuple(OPTIMISERS)
    dataset = L21.run(False, memories=(6.0, 7.0), optimisers=names)
    assert num_failed(dataset) == 0
    for name in names:
        found = dataset["updates"].sel(optimiser=name).values
        expected = [count(name, memory) for memory in (6.0, 7.0)]
        np.testing.assert_allclose(found, expected, atol=1, err_msg=name)
    assert isinstance(L21.plot(dataset), matplotlib.figure.Figure)
    verdicts = L21.check(dataset)
    grow = [v.agrees for v in verdicts if "grow at least" in v.published]
    assert grow == [None] * len(names)


def test_memories_beyond_an_optimiser_are_left_out(monkeypatch):
    asked = []

    def sweep(build, axes, **options):
        omegas = np.asarray(axes["omega"])
        asked.append(omegas.size)
        one = np.ones(omegas.size)
        return xr.Dataset(
            {"time": ("omega", one), "time_reached": ("omega", one), "result": ("omega", 0 * one)}
        )

    monkeypatch.setattr("memjax.reproductions._l21_optimisers.sweep", sweep)
    dataset = L21.run(False, memories=(10.0, 18.0, 40.0), optimisers=("gradient descent", "Adam"))
    assert asked == [3, 1, 2]
    assert dataset["result"].values.tolist() == [[0, -1, -1], [0, 0, -1]]
    assert np.isfinite(dataset["updates"].values).tolist() == [
        [True, False, False],
        [True, True, False],
    ]


@pytest.mark.parametrize(
    "options, match",
    [
        ({"optimisers": ("RMSprop",)}, "`optimisers` must be one of 'gradient descent'"),
        ({"optimisers": ()}, "`optimisers` must be one of"),
        ({"memories": ()}, "`memories` must be a list of at least one number"),
        ({"memories": (-1.0,)}, "`memories`"),
        ({"max_updates": 0}, "`max_updates`"),
    ],
)
def test_bad_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        L21.run(False, **options)
