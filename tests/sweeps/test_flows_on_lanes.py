"""Flows with memory on lanes, against a general integrator of the same equations."""

import diffrax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import memjax as mj
from memjax.solvers import StageNewton

SPEC = mj.PlateauSweep(widths=(2,), start="on-plateau", jitter=0.02, curve_points=0)
KVAERNO = diffrax.Kvaerno5(root_finder=diffrax.with_stepsize_controller_tols(StageNewton)())


class Averaged(mj.AbstractFlow):
    """Not pointwise by its own account, so that whole Jacobians are eliminated."""

    loss: mj.AbstractLoss

    def auxiliary(self, gradient):
        return jnp.zeros_like(gradient)

    def rates(self, gradient, average):
        return -average, (gradient - average) / 0.3

    def resistance(self, average, dt):
        return (1 + 0.3 / dt) / dt

    def coasting(self, average):
        return -0.3 * average


class Slowing(mj.AbstractFlow):
    """Remembers a time and nothing of the weights: gradient flow in the time log(1 + t)."""

    loss: mj.AbstractLoss

    @property
    def pointwise(self):
        return True

    def auxiliary(self, gradient):
        return jnp.zeros(())

    def rates(self, gradient, time):
        return -gradient / (1 + time), jnp.ones(())

    def resistance(self, time, dt):
        return (1 + time) / dt

    def coasting(self, time):
        return jnp.zeros(())


class Pointwise(mj.AbstractFlow):
    """What flows of one's own say of themselves, so that their memories are eliminated."""

    loss: mj.AbstractLoss

    @property
    def pointwise(self):
        return True


class Cascade(Pointwise):
    """The second average is one of the first."""

    def auxiliary(self, gradient):
        return gradient, gradient

    def rates(self, gradient, averages):
        first, second = averages
        return -second, ((gradient - first) / 0.3, (first - second) / 0.5)

    def resistance(self, averages, dt):
        return (1 + 0.3 / dt) * (1 + 0.5 / dt) / dt

    def coasting(self, averages):
        return -0.3 * averages[0] - 0.5 * averages[1]


class Drag(Pointwise):
    """A friction that grows with the speed, so that memories enter their rates nonlinearly."""

    def auxiliary(self, gradient):
        return jnp.zeros_like(gradient)

    def rates(self, gradient, velocity):
        return velocity, -gradient - (1 + velocity**2) * velocity

    def resistance(self, velocity, dt):
        return (1 / dt + 1 + 3 * velocity**2) / dt

    def coasting(self, velocity):
        return jnp.arctan(velocity)


FLOWS = {
    "heavy ball": lambda loss: mj.HeavyBall(loss, 1.0),
    "without friction": lambda loss: mj.HeavyBall(loss, 0.0),
    "Nesterov": mj.Nesterov,
    "Adam": mj.Adam,
    "preconditioned": lambda loss: mj.PreconditionedFlow(
        loss, lx.DiagonalLinearOperator(jnp.array([1.0, 2.0, 0.5, 1.0]))
    ),
    "averaged": Averaged,
    "cascade": Cascade,
    "drag": Drag,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOWS)
def test_times_are_those_of_a_general_integrator(name):
    def build(omega):
        loss = mj.WhiteNoiseLoss(SPEC.target(omega))
        return FLOWS[name](loss), SPEC.model(omega, 2, 0), mj.RelativeLossDrop(0.02)

    omegas = [1 / 4, 1 / 10]
    cells = mj.sweep(build, {"omega": omegas}, progress=False)
    for omega, time in zip(omegas, np.asarray(cells["time"]), strict=True):
        general = mj.measure_plateau(*build(omega), solver=KVAERNO)
        np.testing.assert_allclose(time, general.time, rtol=2e-5)
        single = mj.measure_plateau(*build(omega))
        np.testing.assert_allclose(single.time, general.time, rtol=2e-5)


@pytest.mark.slow
def test_a_memory_of_time_alone():
    def build(flow, omega):
        loss = mj.WhiteNoiseLoss(SPEC.target(omega))
        return flow(loss), SPEC.model(omega, 2, 0), mj.RelativeLossDrop(0.02)

    slow, plain = (
        mj.sweep(lambda omega, f=f: build(f, omega), {"omega": [1 / 4]}, progress=False)
        for f in (Slowing, mj.GradientFlow)
    )
    np.testing.assert_allclose(np.log1p(slow["time"]), plain["time"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flow",
    [mj.GradientFlow, lambda loss: mj.HeavyBall(loss, 1.0)],
)
def test_added_modes_change_nothing(flow, monkeypatch):
    """Widths that share their programs give what those of their own give."""

    def build(omega, width):
        target = mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(omega, 1.0, 0.5)
        model = mj.on_plateau(target, jnp.linspace(0.6, 2.0, width - 1))
        return flow(mj.WhiteNoiseLoss(target)), model, mj.RelativeLossDrop(0.02)

    axes = {"omega": [1 / 6, 1 / 12, 1 / 30], "width": [2, 4]}
    shared = mj.sweep(build, axes, static=("width",), progress=False)
    monkeypatch.setattr("memjax.sweeps._jobs._COMPILE", -1.0)
    apart = mj.sweep(build, axes, static=("width",), progress=False)
    np.testing.assert_array_equal(shared["result"], apart["result"])
    np.testing.assert_allclose(shared["time"], apart["time"], rtol=1e-9)
    np.testing.assert_array_equal(shared["num_steps"], apart["num_steps"])
