"""Newton systems of flows that move every weight by its own gradient, against whole Jacobians."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj
from memjax.curvature import DenseCurvature
from memjax.flows import linearise_flow, memory_solver
from memjax.solvers import RADAU

LANES, WIDTH = 3, 2
WEIGHTS = 2 * WIDTH


class Interleaved(mj.AbstractFlow):
    """The memories `a` and `c` depend on one another, and `b` on neither."""

    loss: mj.AbstractLoss

    @property
    def pointwise(self):
        return True

    def auxiliary(self, gradient):
        return {"a": gradient, "b": 2 * gradient, "c": -gradient, "time": jnp.zeros(())}

    def rates(self, gradient, memory):
        a, b, c = (memory[name] for name in "abc")
        slow = 1 / (1 + memory["time"])
        change = {"a": gradient - a - 0.5 * c, "b": slow * (gradient - b), "c": a - 2 * c}
        return -a - 0.3 * b - 0.1 * gradient, {**change, "time": jnp.ones(())}

    def resistance(self, memory, dt):
        return 1 / dt

    def coasting(self, memory):
        return -memory["a"]


class Drag(Interleaved):
    def auxiliary(self, gradient):
        return jnp.zeros_like(gradient)

    def rates(self, gradient, memory):
        return memory, -gradient - (1 + memory**2) * memory


class Scaled(Interleaved):
    """No memory at all."""

    def auxiliary(self, gradient):
        return None

    def rates(self, gradient, memory):
        return -2 * gradient, None


FLOWS = {
    "heavy ball": lambda loss: mj.HeavyBall(loss, 0.7),
    "Nesterov": mj.Nesterov,
    "Adam": mj.Adam,
    "interleaved": Interleaved,
    "drag": Drag,
    "no memory": Scaled,
}


def lanes_of(make):
    """Flows of three lanes, states, gradients and Hessians. Nothing is at rest or symmetric."""
    spec = mj.PlateauSweep(widths=(WIDTH,))
    flow = make(mj.WhiteNoiseLoss(spec.target(0.25)))
    displaced = lambda seed: flow.displaced(spec.model(0.25, WIDTH, seed))
    flows = eqx.filter_vmap(displaced, out_axes=eqx.if_array(-1))(jnp.arange(LANES))
    random = np.random.default_rng(0)
    start = eqx.filter_vmap(
        lambda flow: flow.initial_state(), in_axes=eqx.if_array(-1), out_axes=-1
    )(flows)
    y = start + jnp.asarray(random.uniform(0.1, 0.5, start.shape))
    gradient = jnp.asarray(random.normal(size=(WEIGHTS, LANES)))
    hessian = random.normal(size=(WEIGHTS, WEIGHTS, LANES))
    hessian = jnp.asarray(np.einsum("ikl,jkl->ijl", hessian, hessian))
    return flows, y, gradient, hessian


def lane(flows, k):
    arrays, fixed = eqx.partition(flows, eqx.is_array)
    return eqx.combine(jax.tree.map(lambda x: x[..., k], arrays), fixed)


def scalars_of(flows):
    """Whether each number of a state is a scalar of the flow."""
    leaves = jax.tree.leaves(lane(flows, 0).auxiliary)
    return np.concatenate(
        [np.zeros(WEIGHTS, bool), *(np.full(leaf.size, leaf.ndim == 0) for leaf in leaves)]
    )


def jacobian_of(flow, y, gradient, hessian):
    def velocity(moved):
        return flow.velocity(gradient + hessian @ (moved - y)[:WEIGHTS], moved)

    return np.array(jax.jacfwd(velocity)(y))


@pytest.mark.parametrize("name", FLOWS)
def test_solves_are_those_of_the_whole_jacobian(name):
    flows, y, gradient, hessian = lanes_of(FLOWS[name])
    ahead = jnp.array([0.1, 0.2, 0.3])
    system = linearise_flow(flows, y, gradient, DenseCurvature(hessian), ahead)
    mu, beside = jnp.array([2.0, 5.0, 11.0]), jnp.array([1.0, 3.0, 7.0])
    scalar = scalars_of(flows)
    sides = np.random.default_rng(1).normal(size=(len(y), 2, LANES))
    sides[scalar] = 0
    found = np.asarray(system.solver(mu)(jnp.asarray(sides)))
    solve = system.solver_complex(mu, beside)
    real, imaginary = solve(jnp.asarray(sides[:, 0]), jnp.asarray(sides[:, 1]))
    for k in range(LANES):
        flow = lane(flows, k)
        speed = np.where(scalar, flow.velocity(gradient[:, k], y[:, k]), 0)
        jacobian = jacobian_of(flow, y[:, k] + ahead[k] * speed, gradient[:, k], hessian[..., k])
        jacobian[:, scalar] = 0
        eye = np.eye(len(y))
        wanted = np.linalg.solve(float(mu[k]) * eye - jacobian, sides[..., k])
        np.testing.assert_allclose(found[..., k], wanted, rtol=1e-10, atol=1e-12)
        shifted = complex(mu[k], beside[k]) * eye - jacobian
        wanted = np.linalg.solve(shifted, sides[:, 0, k] + 1j * sides[:, 1, k])
        np.testing.assert_allclose(
            np.asarray(real + 1j * imaginary)[:, k], wanted, rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("name", [name for name in FLOWS if name != "no memory"])
def test_sides_of_the_weights_alone_are_those_with_zeros_elsewhere(name):
    flows, y, gradient, hessian = lanes_of(FLOWS[name])
    dt = jnp.array([0.1, 0.2, 0.3])
    system = linearise_flow(flows, y, gradient, DenseCurvature(hessian), dt)
    short = jnp.asarray(np.random.default_rng(2).normal(size=(WEIGHTS, 1, LANES)))
    whole = jnp.zeros((len(y), 1, LANES)).at[:WEIGHTS].set(short)
    solve, pair = system.solver(1 / dt), system.solver_complex(1 / dt, 2 / dt)
    np.testing.assert_allclose(solve(short), solve(whole), rtol=1e-14, atol=0)
    for x, z in zip(pair(short[:, 0], -short[:, 0]), pair(whole[:, 0], -whole[:, 0]), strict=True):
        np.testing.assert_allclose(x, z, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", [name for name in FLOWS if name != "no memory"])
def test_memories_obey_their_equations_at_the_stages(name):
    """Where they enter them linearly: those of a drag do not, and are said not to."""
    flows, y, gradient, _ = lanes_of(FLOWS[name])
    dt = jnp.array([0.1, 0.2, 0.3])
    recall, exact = memory_solver(flows, y, gradient, dt, RADAU.times, RADAU.inverse)
    assert exact == (name != "drag")
    random = np.random.default_rng(3)
    gradients = jnp.asarray(random.normal(size=(WEIGHTS, 3, LANES)))
    guess = jnp.asarray(random.normal(size=(len(y), 3, LANES)))
    stages = recall(gradients, guess)
    np.testing.assert_array_equal(stages[:WEIGHTS], guess[:WEIGHTS])
    velocity = eqx.filter_vmap(
        lambda flow, gradient, y: jax.vmap(flow.velocity, -1, -1)(gradient, y),
        in_axes=eqx.if_array(-1),
        out_axes=-1,
    )(flows, gradients, y[:, None] + stages)
    missed = np.einsum("ij,njl->nil", RADAU.inverse, stages) / dt - velocity
    largest = np.max(np.abs(np.asarray(missed)[WEIGHTS:]))
    assert (largest < 1e-11) == exact


class Mixing(Interleaved):
    """Not pointwise, as it says: a memory feels the others of its kind."""

    def rates(self, gradient, memory):
        velocity, change = super().rates(gradient, memory)
        return velocity, change | {"b": change["b"] - jnp.mean(memory["b"])}


class Paced(Interleaved):
    """The scalar does not move at a constant speed."""

    def rates(self, gradient, memory):
        velocity, change = super().rates(gradient, memory)
        return velocity, change | {"time": 1 - memory["time"]}


@pytest.mark.parametrize("flow", [Mixing, Paced])
def test_what_a_flow_says_of_itself_is_not_believed(flow):
    flows, y, gradient, _ = lanes_of(flow)
    dt = jnp.array([0.1, 0.2, 0.3])
    assert not memory_solver(flows, y, gradient, dt, RADAU.times, RADAU.inverse)[1]
