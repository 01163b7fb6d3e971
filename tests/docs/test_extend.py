"""The pages on how to write a model, target, reparametrisation, exit, flow or training."""

import contextlib
import functools
import io
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import memjax as mj

PAGES = Path(__file__).parents[2] / "docs" / "extend"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
# The page, and which of its examples.
PARTS = [
    pytest.param("model", 0, marks=pytest.mark.slow),
    pytest.param("target", 0, marks=pytest.mark.slow),
    pytest.param("reparametrisation", 0, marks=pytest.mark.slow),
    pytest.param("exit", 0, marks=pytest.mark.slow),
    ("loss", 0),
    ("flow", 0),
    ("flow", 1),
]
EXAMPLES = [*PARTS, pytest.param("reproduction", 0, marks=pytest.mark.slow)]


def blocks(page):
    return BLOCK.findall((PAGES / f"{page}.md").read_text(encoding="utf-8"))


@functools.cache
def run(page, index):
    """What an example defines, and what it prints."""
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(blocks(page)[index], f"{page}.md", "exec"), names)
    return names, printed.getvalue()


def test_every_example_is_run_and_short():
    found = {(p.stem, i) for p in PAGES.glob("*.md") for i in range(len(blocks(p.stem)))}
    assert found == {getattr(example, "values", example) for example in EXAMPLES}
    for page, index in found:
        # Blank lines are the formatter's.
        lines = [line for line in blocks(page)[index].splitlines() if line.strip()]
        assert len(lines) <= 25, (page, index)


@pytest.mark.thorough
@pytest.mark.parametrize("page, index", EXAMPLES)
def test_examples_print_what_they_say(page, index):
    _, printed = run(page, index)
    said = re.search(r"^print\(.*#(.*)$", blocks(page)[index], re.MULTILINE)
    assert said is not None
    expected = [float(number) for number in NUMBER.findall(said[1])]
    found = [float(number) for number in printed.split()]
    np.testing.assert_allclose(found, expected, rtol=5e-4)


@pytest.mark.thorough
def test_the_target_is_the_kernel_that_it_says():
    kernel = run("target", 0)[0]["Erlang"](jnp.array(0.7))
    rho = lambda t: t * np.exp(-0.7 * t)
    for horizon in (3.0, np.inf):
        exact = quad(lambda t: np.exp(-0.4 * t) * rho(t), 0, horizon)[0]
        np.testing.assert_allclose(kernel.laplace(0.4, horizon), exact, rtol=1e-9)
        exact = quad(lambda t: rho(t) ** 2, 0, horizon)[0]
        np.testing.assert_allclose(kernel.squared_norm(horizon), exact, rtol=1e-9)
    for t in (-1.0, 2.0):
        exact = quad(rho, 0, max(t, 0))[0]
        np.testing.assert_allclose(kernel.heaviside_response(t), exact, rtol=1e-9)
        exact = quad(lambda s: (t - s) * rho(s), 0, max(t, 0))[0]
        np.testing.assert_allclose(kernel.ramp_response(t), exact, rtol=1e-9)
    assert kernel(-1.0) == 0


@pytest.mark.thorough
def test_the_reparametrisation_inverts_and_moves():
    reparametrisation = run("reparametrisation", 0)[0]["AboveFloor"](jnp.array(0.01))
    free = reparametrisation.inverse(jnp.array(0.5))
    np.testing.assert_allclose(reparametrisation(free), 0.5)
    moved = reparametrisation(free + 0.1) - reparametrisation(free)
    np.testing.assert_allclose(reparametrisation.displacement(free, jnp.array(0.1)), moved)
    # Where the difference of two rates would have no digit left.
    tiny = reparametrisation.displacement(free, jnp.array(1e-30))
    np.testing.assert_allclose(tiny, 2e-30 * free, rtol=1e-12)


@pytest.mark.slow
def test_the_flow_is_a_heavy_ball_in_another_time():
    names, printed = run("flow", 0)
    root = float(np.sqrt(names["flow"].span))
    ball = mj.HeavyBall(names["loss"], friction=1 / root)
    found = mj.measure_plateau(ball, names["model"], mj.RelativeLossDrop(0.8))
    np.testing.assert_allclose(root * found.time, float(printed), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("page, index", PARTS)
def test_everything_can_be_swept(page, index):
    names, printed = run(page, index)
    loss = mj.WhiteNoiseLoss(mj.ExponentialSum([1.0, 0.5], [1.0, 0.05]))
    flow = mj.GradientFlow(loss)
    model = mj.DiagonalLinearRNN([0.8, 0.1], [1.2, 0.8])
    drop = mj.RelativeLossDrop(0.5)

    def build(value):
        if page == "model":
            start = names["SelfDamped"](value * names["model"].rates, names["model"].weights)
            return names["training"], start, drop
        if page == "target":
            target = mj.ExponentialSum(1.0, 1.0) + names["Erlang"](0.2 * value)
            return mj.GradientFlow(mj.WhiteNoiseLoss(target)), names["model"], drop
        if page == "reparametrisation":
            above = names["AboveFloor"](0.01 * value)
            rates = jnp.array([1.2, 0.8])
            return flow, mj.DiagonalLinearRNN(jnp.array([0.8, 0.1]), rates, above), drop
        if page == "loss":
            fit = names["KernelFit"](names["ts"], value * names["loss"].measured)
            return mj.GradientFlow(fit), names["model"], drop
        if page == "exit":
            return flow, model, names["SlowMode"](0.1 * value)
        if index == 0:
            return names["AveragedFlow"](loss, 0.1 * value), model, drop
        return names["Lion"](loss, 0.01 * value), model, drop

    found = mj.sweep(build, {"value": [1.0, 1.5]}, progress=False)
    assert np.all(found.result == 0)
    assert found.time[0] != found.time[1]
