import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

import memjax as mj
from memjax.solvers import StageNewton

NEWTON = mj.RadauNewton(1e-12, 1e-12)
FULL = mj.RadauNewton(1e-12, 1e-12, full=True)


def one_step(vector_field, solver, t0, t1, y0, state=None):
    term = diffrax.ODETerm(vector_field)
    state = solver.init(term, t0, t1, y0, None) if state is None else state
    return solver.step(term, t0, t1, y0, None, state, False)


@pytest.mark.thorough
def test_step_is_the_collocation_method():
    # The stages by the textbook's table, for y' = -y^2 + t, with SciPy's digits of the roots.
    root = np.sqrt(6)
    weights = np.array(
        [
            [(88 - 7 * root) / 360, (296 - 169 * root) / 1800, (-2 + 3 * root) / 225],
            [(296 + 169 * root) / 1800, (88 + 7 * root) / 360, (-2 - 3 * root) / 225],
            [(16 - root) / 36, (16 + root) / 36, 1 / 9],
        ]
    )
    times = np.sum(weights, axis=1)
    stages = np.ones(3)
    for _ in range(200):
        stages = 1 + 0.3 * weights @ (-(stages**2) + 0.3 * times)
    for newton in (NEWTON, FULL, StageNewton(1e-12, 1e-12)):
        solver = mj.RadauIIA5(newton)
        y1, _, dense, _, result = one_step(lambda t, y, _: t - y**2, solver, 0.0, 0.3, jnp.ones(1))
        assert result == diffrax.RESULTS.successful
        np.testing.assert_allclose(y1[0], stages[2], rtol=1e-12)
        polynomial = solver.interpolation_cls(t0=0.0, t1=0.3, **dense)
        found = [polynomial.evaluate(0.3 * time)[0] for time in times]
        np.testing.assert_allclose(found, stages, rtol=1e-12)


def test_stability():
    y1, *_ = one_step(lambda t, y, args: -1e12 * y, mj.RadauIIA5(NEWTON), 0.0, 1.0, jnp.ones(1))
    assert abs(y1[0]) < 1e-10


@pytest.mark.thorough
@pytest.mark.parametrize("rate", [1.0, 1e3, 1e6, 1e9])
def test_error_estimate_is_that_of_the_polynomial(rate):
    # Prothero and Robinson's problem off its solution by a part in 1e4, in a step of 0.1: at any
    # stiffness the estimate is what the polynomial is off by, and not that over the stiffness,
    # while of what the start is off by, which the step damps, it holds no more than that.
    solve = lambda off: one_step(
        lambda t, y, args: -rate * (y - jnp.sin(3 * t)) + 3 * jnp.cos(3 * t),
        mj.RadauIIA5(NEWTON), 1.0, 1.1, jnp.full(1, np.sin(3) + off),
    )  # fmt: skip
    y1, error, dense, *_ = solve(0.0)
    polynomial = mj.RadauIIA5.interpolation_cls(t0=1.0, t1=1.1, **dense)
    times = np.linspace(1, 1.1, 101)
    off = np.max(np.abs(jax.vmap(polynomial.evaluate)(times)[:, 0] - np.sin(3 * times)))
    assert 0.8 * off < error[0] < 2 * off
    _, moved, *_ = solve(1e-4)
    assert moved[0] < error[0] + 0.5e-4


def test_steps_start_from_the_polynomial_of_the_last():
    # A cubic is its own collocation polynomial: whatever the next step's length, there is nothing
    # left to iterate, so that one iteration will do where the problem is not linear.
    def vector_field(t, y, args):
        return 3 * t**2 + jnp.sin(30 * (y - t**3))

    several = mj.RadauIIA5(NEWTON, root_find_max_steps=50)
    start = jnp.zeros(1)
    *_, state, result = one_step(vector_field, several, 0.0, 0.01, start)
    assert result == diffrax.RESULTS.successful
    once = mj.RadauIIA5(NEWTON, root_find_max_steps=1)
    arguments = (0.01, 0.05, jnp.full(1, 0.01**3))
    y1, *_, result = one_step(vector_field, once, *arguments, state)
    assert result == diffrax.RESULTS.successful
    np.testing.assert_allclose(y1, 0.05**3, rtol=1e-9)
    *_, result = one_step(vector_field, once, *arguments)
    assert result != diffrax.RESULTS.successful


def test_start_is_forgotten_at_jumps():
    # The direction turns at t = 1, where extrapolation leads astray but must not matter.
    def vector_field(t, y, args):
        return jnp.where(t < 1, 1.0, -50.0) * y

    controller = diffrax.ClipStepSizeController(
        diffrax.PIDController(rtol=1e-8, atol=1e-10), jump_ts=jnp.array([1.0])
    )

    @jax.jit
    def run():
        return diffrax.diffeqsolve(
            diffrax.ODETerm(vector_field), mj.RadauIIA5(), 0.0, 1.2, None, jnp.ones(1),
            stepsize_controller=controller,
        ).ys[0, 0]  # fmt: skip

    np.testing.assert_allclose(run(), np.exp(1 - 10), rtol=1e-6)


def test_step_is_refused_where_newton_fails():
    def vector_field(t, y, args):
        return 1e3 * jnp.cos(1e3 * y)

    for newton in (NEWTON, FULL):
        y1, error, _, _, result = one_step(
            vector_field, mj.RadauIIA5(newton, root_find_max_steps=3), 0.0, 1.0, jnp.ones(1)
        )
        assert result != diffrax.RESULTS.successful
        # With finite numbers, whose derivatives are harmless, and an error that no tolerance
        # accepts.
        assert np.all(np.isfinite(y1)) and np.all(np.isinf(error))


def test_full_newton_where_the_jacobian_varies_fast():
    # The Jacobian at the start is 75 times that at the end, where y = -log(10 + exp(-2)).
    solved = {}
    for newton in (NEWTON, FULL):
        solver = mj.RadauIIA5(newton, root_find_max_steps=25)
        y1, *_, result = one_step(
            lambda t, y, args: -jnp.exp(y), solver, 0.0, 10.0, jnp.full(1, 2.0)
        )
        solved[newton.full] = bool(result == diffrax.RESULTS.successful)
    assert solved == {False: False, True: True}
    np.testing.assert_allclose(y1, -np.log(10 + np.exp(-2)), rtol=0.1)


@pytest.mark.thorough
def test_given_jacobian_is_that_of_every_iteration():
    # A wrong Jacobian costs iterations, not accuracy, and leaves derivatives alone.
    asked = []

    def jacobian(t, y, args):
        asked.append(t)
        return jnp.array([[-1.5]])

    def step(solver, y0):
        y1, *_, result = one_step(lambda t, y, args: -(y**2), solver, 0.0, 0.2, y0)
        return y1[0], result

    y0 = jnp.ones(1)
    expected = jax.value_and_grad(step, argnums=1, has_aux=True)(mj.RadauIIA5(NEWTON), y0)
    for newton in (NEWTON, FULL):
        asked.clear()
        solver = mj.RadauIIA5(newton, root_find_max_steps=50, jacobian=jacobian)
        found = jax.value_and_grad(step, argnums=1, has_aux=True)(solver, y0)
        assert found[0][1] == diffrax.RESULTS.successful
        assert asked
        np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-11)
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-11)


def test_wrong_input():
    with pytest.raises(ValueError, match="`root_find_max_steps` must be an integer of at least 1"):
        mj.RadauIIA5(root_find_max_steps=0)
    with pytest.raises(ValueError, match="`RadauNewton` solves the stages of `RadauIIA5` only"):
        optx.root_find(lambda y, args: y**2 - 2, NEWTON, jnp.array(1.0))
    with pytest.raises(ValueError, match="tolerances for the implicit solver"):
        diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: -y), mj.RadauIIA5(), 0.0, 1.0, 0.1, jnp.ones(1)
        )
