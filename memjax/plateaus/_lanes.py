"""Plateau measurements side by side, one a lane, each at its own step size and time.

The method is the three-stage Radau IIA formula with a simplified Newton iteration, in the
displacement from the start (Hairer & Wanner, Solving Ordinary Differential Equations II,
Section IV.8). It is the same for every lane and never waits for one: lanes whose step fails
try again while the others go on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..curvature import (
    AbstractCurvature,
    couple,
    couple_arrays,
    GradedCurvature,
    LanczosCurvature,
)
from ..flows import (
    AbstractLinearisedFlow,
    acceleration,
    flow_jacobian,
    FlowLanes,
    GradientFlow,
    linearise_flow,
    Solve,
    step_response,
)
from ..losses import Linearisation
from ..numerics import choose, over_lanes
from ..solvers import RADAU
from ._conclusion import conclude
from ._crossing import first_crossing
from ._newton import defects, displace, solve_stages, Stages
from ._outcomes import (
    CONVERGED,
    CROSSED,
    EXITED,
    INVALID,
    MAX_STEPS_REACHED,
    MAX_TIME_REACHED,
    RESTING,
    RUNNING,
    time_of,
    UNRESOLVED,
)
from ._recording import Recording
from ._rest import comes_to_rest, smallest_curvature, trusted_curvature
from ._rounding import Ledger, sign_patterns, smallest_displacement
from ._runs import Lanes, Runs, unit_norm

# Newton iterations in a step. More of them cost all lanes and save few steps.
_ITERATIONS = 2
# Without closed forms they cost less than a Hessian, which serves as long as they converge faster.
_ITERATIONS_WITHOUT, _SLOW = 5, 0.1
_LARGEST_GROWTH, _LARGEST_CUT, _CUT_WITHOUT_CONVERGENCE = 30.0, 0.2, 0.4

# The share of a direction that a shift leaves of it, above which it has no curvature.
_FLAT = 0.01

# From stages to the coefficients of theta, theta^2, theta^3 in their interpolation.
_COEFFICIENTS = np.linalg.inv(RADAU.times[:, None] ** np.arange(1, 4))


class Exit(NamedTuple):
    """The time after the start of the last step at which an exit is met, the state and the loss
    there, how fast the margin changes, and the length and the stages of a step to about there."""

    span: Float[Array, " lanes"]
    y: Float[Array, "state lanes"]
    loss: Float[Array, " lanes"]
    slope: Float[Array, " lanes"]
    dt: Float[Array, " lanes"]
    stages: Float[Array, "state 3 lanes"]


class LaneMethod(eqx.Module):
    """How lanes start, step and end.

    **Attributes:**

    - `rtol`: the tolerance, relative to the displacement of every weight.
    - `max_time`, `max_steps`, `resolution`: as in [`memjax.measure_plateau`][].
    - `curve_times`: increasing training times at which to record the loss.
    - `compensated`: whether displacements and gradients are double-double numbers.
    - `full`: whether Newton's iteration uses the Jacobians of all stages.
    """

    rtol: Float[Array, ""]
    max_time: Float[Array, ""]
    max_steps: Int[Array, ""]
    resolution: Float[Array, ""]
    curve_times: Float[Array, " times"]
    compensated: bool = eqx.field(static=True, default=False)
    full: bool = eqx.field(static=True, default=False)

    def start(self, runs: Runs) -> Lanes:
        """Every lane at its start."""
        y = over_lanes(lambda flow: flow.initial_state())(runs.flow)
        n, lanes = runs.size, y.shape[1]
        low = jnp.zeros_like(y) if self.compensated else None
        here = self._linearise(runs, y, low)
        fastest = here.curvature.bound()
        dt = jnp.minimum(1.0 / jnp.where(fastest > 0, fastest, 1), self.max_time)
        zero, count = jnp.zeros(lanes), jnp.zeros(lanes, jnp.int32)
        velocity = runs.velocity(here.gradient, y)
        turn = acceleration(runs.flow, y, here.gradient, here.curvature)
        floor = over_lanes(smallest_displacement)(runs.flow, velocity, turn, fastest)
        direction = runs.anywhere()
        margin = runs.margin(here.loss, here.loss, y)
        sound = jnp.isfinite(here.loss) & ~jnp.isnan(margin)
        sound = sound & jnp.all(jnp.isfinite(velocity), axis=0)
        # Traced arguments out of their range are NaN.
        sound = sound & (self.rtol > 0) & (self.max_time > 0)
        still = jnp.all(here.gradient == 0, axis=0) & jnp.all(runs.coasting(y) == 0, axis=0)
        result = jnp.where(still, RESTING, RUNNING)
        result = jnp.where(margin <= 0, EXITED, result)
        result = jnp.where(sound, result, INVALID)
        state = Lanes(
            y=y,
            low=low,
            initial_loss=here.loss,
            floor=floor,
            time=zero,
            dt=dt,
            # Before the first step it goes on along the tangent.
            polynomial=jnp.stack([dt * velocity, 0 * y, 0 * y], axis=1),
            last_dt=dt,
            last_error=zero + 1,
            margin=margin,
            crossing=first_crossing(None, margin, margin),
            nearest=zero + jnp.inf,
            nearest_y=y,
            after_rejection=count > 0,
            result=result.astype(jnp.int32),
            direction=jnp.broadcast_to(direction, (n, lanes)),
            curvature=None if runs.closed else here.curvature,
            stale=count > 0,
            ledger=Ledger.open(zero),
            num_steps=count,
            num_accepted_steps=count,
            recording=Recording.open(self.curve_times, zero, "loss", "distance"),
        )
        return self._record(runs, state, zero, zero, state.polynomial)

    def _linearise(self, runs: Runs, y: Array, low: Array | None) -> Linearisation:
        n = runs.size
        return runs.dynamics.linearise(y[:n], None if low is None else low[:n])

    def step(self, runs: Runs, state: Lanes) -> Lanes:
        """One attempted step of every lane that is running."""
        running = state.result == RUNNING
        y, dt = state.y, state.dt
        # Made anew in every step where there are closed forms: to carry one along costs more.
        if state.curvature is None:
            here = self._linearise(runs, y, state.low)
        else:
            assert isinstance(runs.dynamics, FlowLanes)
            due = jnp.any(running & state.stale)
            here = runs.dynamics.linearise(y[: runs.size], None, state.curvature, due)
        n, mu = runs.size, RADAU.real / dt
        velocity = runs.velocity(here.gradient, y)
        jacobian = linearise_flow(runs.flow, y, here.gradient, here.curvature, dt / 2)
        solve = jacobian.solver(mu)
        response, resist = step_response(runs.flow, y, here.curvature, mu, solve)
        scale = self.rtol * (state.floor + jnp.abs(y)) + jnp.finfo(y.dtype).tiny
        stages, rest, converged, iterations, rate = self._stages(
            runs, state, here.curvature, jacobian, solve, response.definite, scale
        )
        y1, low = displace(y, state.low, stages[:, 2], None if rest is None else rest[:, 2])
        loss = runs.loss(y1)

        # The error is the defect of the step's polynomial at its start, divided by what the step
        # resists a change with: unfiltered, a stiff direction that is only followed would be
        # counted at its stiffness.
        defect = jnp.einsum("s,nsl->nl", RADAU.error, stages) / dt
        error = solve((defect + velocity)[:, None])[:, 0]
        # The step to rest, what errors of the gradient do to the step, and the slowest direction.
        sides = [here.gradient, resist(state.direction)]
        sides += [sign * here.noise for sign in sign_patterns(runs.places())]
        solved = runs.alike(response(jnp.stack(sides, axis=1)))
        to_rest, shaken = solved[:, 0], jnp.max(jnp.abs(solved[:, 2:]), axis=1)

        unit = here.gradient / unit_norm(here.gradient)
        across = lambda x: x - unit * jnp.sum(unit * x, axis=0)
        direction = across(solved[:, 1])
        size = unit_norm(direction)
        # The response to the resistance multiplies a direction of curvature c by r / (r + c dt) in
        # a gradient flow, with r the real eigenvalue. So the one that escapes fastest comes out
        # longest, and r - r / size is -c dt, the logarithm of its growth within the step. Along the
        # path growth is no error but a shift in time, and of a single weight there is no direction
        # across.
        growth = jnp.where(jnp.any(direction**2 > 0, axis=0), RADAU.real * (1 - 1 / size), 0)
        # A direction that was damped for long, and starts to grow, must still be found.
        direction = direction / size + 1e-2 * runs.anywhere()

        bound = self.rtol * (state.floor + jnp.maximum(jnp.abs(y), jnp.abs(y1)))
        size_of_error = runs.rms(error / (bound + jnp.finfo(y.dtype).tiny))
        # A longer step would damp what escapes, and sit on a saddle for ever: past a growth of r
        # the factor changes its sign, and long before that the step no longer resolves it.
        sound = converged & response.definite & (growth <= 1) & jnp.isfinite(size_of_error)
        sound = sound & jnp.isfinite(loss)
        keep = running & sound & (size_of_error <= 1)
        margin = runs.margin(state.initial_loss, loss, y1)
        polynomial = jnp.einsum("ks,nsl->nkl", _COEFFICIENTS, stages)

        def margin_at(share: Float[Array, " lanes"]) -> Float[Array, " lanes"]:
            y = state.y + evaluate(polynomial, share)
            return runs.margin(state.initial_loss, runs.loss(y), y)

        crossing = first_crossing(None if runs.monotone else margin_at, state.margin, margin)
        crossed = keep & crossing.crossed
        # Where the shift is below what rounding leaves of the Hessian, the step to rest is
        # Newton's, and the test one for a minimum.
        inert = here.curvature.inert() & (here.noise == 0)
        shift = resist(jnp.ones_like(here.gradient))
        share = jnp.where(inert, 0, shift / (here.curvature.diagonal() + shift))
        coasting = runs.coasting(y)
        away = (jnp.abs(to_rest) + jnp.abs(coasting)) / scale[:n]
        resting = jnp.max(share, axis=0) <= trusted_curvature(n, y.dtype)
        resting = resting & response.definite & (runs.rms(away) <= 1)
        if isinstance(here.curvature, GradedCurvature):
            # There curvatures far below the shift count, and may be what holds the run back.
            confirm = lambda: self._rests(runs, state, here)
            resting = resting & lax.cond(jnp.any(resting), confirm, lambda: resting)
        silent = jnp.all(jnp.abs(here.gradient) <= here.noise, axis=0)
        resting = resting | (silent & ~jnp.any(jnp.abs(coasting) > scale[:n], axis=0))
        advance = keep & ~crossed & ~resting

        factor = self._factor(state, size_of_error, iterations, sound, keep)
        time = state.time + jnp.where(advance, dt, 0)
        next_dt = jnp.minimum(dt * factor, self.max_time - time)
        num_steps = state.num_steps + 1
        result = jnp.where(num_steps >= self.max_steps, MAX_STEPS_REACHED, RUNNING)
        result = jnp.where(advance & (time >= self.max_time), MAX_TIME_REACHED, result)
        tiny = ~advance & (next_dt < jnp.finfo(dt.dtype).tiny)
        result = jnp.where(tiny, UNRESOLVED, result)
        result = jnp.where(resting & ~crossed, RESTING, result)
        result = jnp.where(crossed, CROSSED, result)

        length = lambda x: jnp.sqrt(jnp.sum(x**2, axis=0))
        ledger = state.ledger.add(
            dt,
            moved=length(stages[:n, 2]),
            tolerances=runs.rms(stages[:n, 2] / scale[:n]),
            shaken=length(shaken),
            lost=0.0 if self.compensated else jnp.finfo(y.dtype).eps * length(y1[:n]),
            growth=jnp.clip(growth, 0, 1),
            peak=runs.rms(shaken / scale[:n]),
        )
        nearer = keep & (jnp.abs(crossing.nearest) < jnp.abs(state.nearest))
        nearest = jnp.where(nearer, crossing.nearest, state.nearest)
        there = y + evaluate(polynomial, crossing.share)
        nearest_y = jnp.where(nearer, there, state.nearest_y)
        new = Lanes(
            y=y1,
            low=low,
            initial_loss=state.initial_loss,
            floor=state.floor,
            time=time,
            dt=next_dt,
            polynomial=polynomial,
            last_dt=dt,
            last_error=jnp.maximum(size_of_error, 1e-2),
            margin=margin,
            crossing=crossing,
            nearest=nearest,
            nearest_y=nearest_y,
            after_rejection=jnp.zeros_like(keep),
            result=result.astype(jnp.int32),
            direction=direction / unit_norm(direction),
            curvature=None if runs.closed else here.curvature,
            stale=rate > _SLOW,
            ledger=ledger,
            num_steps=num_steps,
            num_accepted_steps=state.num_accepted_steps + 1,
            recording=state.recording,
        )
        new = self._record(runs, new, state.time, jnp.where(advance, dt, 0), polynomial, y)
        stay = eqx.tree_at(
            lambda s: (s.dt, s.result, s.after_rejection, s.num_steps, s.curvature, s.stale),
            state,
            (next_dt, new.result, ~keep, num_steps, new.curvature, ~sound),
            is_leaf=lambda x: x is None,
        )
        # The step that crosses the exit is kept for what it says of the way there.
        at_exit = eqx.tree_at(
            lambda s: (s.dt, s.polynomial, s.last_dt, s.crossing, s.num_accepted_steps),
            stay,
            (dt, polynomial, dt, crossing, new.num_accepted_steps),
        )
        return choose(running, choose(advance, new, choose(crossed, at_exit, stay)), state)

    def _stages(
        self,
        runs: Runs,
        state: Lanes,
        curvature: AbstractCurvature,
        jacobian: AbstractLinearisedFlow,
        solve: Solve,
        definite: Bool[Array, " lanes"],
        scale: Float[Array, "n lanes"],
    ) -> Stages:
        """The increments of the stages."""
        dt = state.dt
        # The last step's interpolation goes on, as long as there is one: Newton's iteration starts
        # with an error that is already small, and may be short.
        theta = 1 + RADAU.times[:, None] * (dt / state.last_dt)
        powers = jnp.stack([theta ** (k + 1) - 1 for k in range(3)])
        predicted = jnp.sum(state.polynomial[:, :, None] * powers, axis=1)
        solve_pair = jacobian.solver_complex(RADAU.pair.real / dt, RADAU.pair.imag / dt)

        def frozen(stages: Array, rest: Array | None) -> tuple[Array, Array]:
            stages, defect = defects(runs, state, stages, rest)
            first = solve(jnp.einsum("s,nsl->nl", RADAU.real_row, defect)[:, None])[:, 0]
            second = solve_pair(
                jnp.einsum("s,nsl->nl", np.real(RADAU.pair_row), defect),
                jnp.einsum("s,nsl->nl", np.imag(RADAU.pair_row), defect),
            )
            change = -RADAU.real_column[:, None] * first[:, None]
            change = change - 2 * np.real(RADAU.pair_column)[:, None] * second[0][:, None]
            change = change + 2 * np.imag(RADAU.pair_column)[:, None] * second[1][:, None]
            return stages, jnp.asarray(change)

        idle = state.result != RUNNING
        open_ = definite & ~idle
        if self.full:
            update, most = self._full_update(runs, state, curvature), 10
        else:
            update, most = frozen, _ITERATIONS if runs.closed else _ITERATIONS_WITHOUT
        return solve_stages(runs, update, predicted, open_, idle, scale, most, self.compensated)

    def _full_update(
        self, runs: Runs, state: Lanes, start: AbstractCurvature
    ) -> Callable[..., tuple[Array, Array]]:
        """Newton's update with the Jacobian of every stage: where modes approach each other, the
        Hessians at the stages of one step differ too much for that of its `start`."""

        def update(stages: Array, rest: Array | None) -> tuple[Array, Array]:
            stages, defect = defects(runs, state, stages, rest)
            after, rate = state.y[:, None] + stages, 1 / state.dt
            here = []
            for k in range(3):
                short = None if rest is None else rest[:, k]
                moved = displace(state.y, state.low, stages[:, k], short)
                each = self._linearise(runs, *moved)
                if isinstance(start, GradedCurvature):
                    # The blocks hold the residual, which is anything where an iterate is off the
                    # manifold on which the run moves; the start of the step is on it.
                    graded = eqx.tree_at(lambda c: c.blocks, each.curvature, start.blocks)
                    each = eqx.tree_at(lambda e: e.curvature, each, graded)
                here.append(each)
            if isinstance(runs.flow.flow, GradientFlow):
                solve = couple([each.curvature for each in here], RADAU.inverse, rate)
            else:
                whole = [
                    -flow_jacobian(runs.flow, after[:, k], each.gradient, each.curvature)
                    for k, each in enumerate(here)
                ]
                solve = couple_arrays(whole, RADAU.inverse, rate)
            return stages, -solve(defect)

        return update

    def _factor(
        self, state: Lanes, error: Array, iterations: Array, sound: Array, keep: Array
    ) -> Float[Array, " lanes"]:
        """By how much the next step is longer: Gustafsson's predictive controller.

        The error estimate is of order 3, hence the fourth roots. On a plateau the error falls by
        about the same factor in every step; a controller that looks at the last error alone would
        always be one step late, and refuse steps where the plateau ends.
        """
        # Steps that took many iterations are a little too long.
        safety = 0.9 * (2 * _ITERATIONS + 1) / (2 * _ITERATIONS + iterations)
        error = jnp.maximum(error, 1e-12)
        factor = safety * error**-0.25
        first = state.num_accepted_steps == 0
        predicted = factor * (state.dt / state.last_dt) * (state.last_error / error) ** 0.25
        factor = jnp.where(first | ~keep, factor, jnp.minimum(factor, predicted))
        factor = jnp.clip(factor, _LARGEST_CUT, _LARGEST_GROWTH)
        factor = jnp.where(keep & state.after_rejection, jnp.minimum(factor, 1), factor)
        factor = jnp.where(keep, factor, jnp.minimum(factor, 0.9))
        return jnp.where(sound, factor, _CUT_WITHOUT_CONVERGENCE)

    def _record(
        self,
        runs: Runs,
        state: Lanes,
        since: Float[Array, " lanes"],
        span: Float[Array, " lanes"],
        polynomial: Float[Array, "n 3 lanes"],
        origin: Float[Array, "n lanes"] | None = None,
    ) -> Lanes:
        """Write the curve at the times within `span` after `since`."""
        origin = state.y if origin is None else origin
        until = since + span
        # Nothing is due in a lane that does not move on, but at its start.
        moving = (span > 0) | (state.num_steps == 0)

        def see(time: Float[Array, " lanes"]) -> dict[str, Array]:
            theta = jnp.where(span > 0, (time - since) / span, 0)
            y = origin + evaluate(polynomial, jnp.clip(theta, 0, 1))
            return {"loss": runs.loss(y), "distance": runs.distance(y)}

        due = lambda time: moving & (time <= until)
        recording = state.recording.write(self.curve_times, due, see)
        return eqx.tree_at(lambda s: s.recording, state, recording)

    def finish(self, runs: Runs, state: Lanes) -> tuple[dict[str, Array], Exit]:
        """What was measured, for lanes that have ended: the variables of a sweep, lanes first, and
        where they ended."""
        crossed = state.result == CROSSED
        here = self._linearise(runs, state.y, state.low)
        found = self._locate(runs, state, here)
        span = jnp.where(crossed, found.span, 0)
        y = jnp.where(crossed, found.y, state.y)
        loss = jnp.where(crossed, found.loss, here.loss)
        time = state.time + span
        if self.curve_times.shape[0] > 0:
            state = self._record(runs, state, state.time, span, state.polynomial)
        distance = runs.distance(y)

        settled, curvature = self._settle(runs, state, here)
        # One loop, so that the gradient of the margin is compiled once.
        doubt = lax.map(lambda y: self._doubt(runs, state, y), jnp.stack([y, state.nearest_y]))
        result, rounding = conclude(
            state.result,
            settled,
            time=time,
            distance=distance,
            ledger=state.ledger,
            margin=state.margin,
            margin_noise=runs.margin_noise(state.initial_loss, loss, y),
            slope=found.slope,
            doubt=doubt[0],
            nearest=state.nearest,
            doubt_there=doubt[1],
            rtol=self.rtol,
            resolution=self.resolution,
        )
        rows = {
            "time": time_of(result, time),
            "result": result,
            "time_reached": time,
            "initial_loss": state.initial_loss,
            "loss": loss,
            "distance": distance,
            "rounding": rounding,
            "curvature": curvature,
            "precision": jnp.full_like(result, self.compensated),
            "num_steps": state.num_steps,
            "num_rejected_steps": state.num_steps - state.num_accepted_steps,
        }
        if self.curve_times.shape[0] > 0:
            values = state.recording.values
            rows |= {f"curve_{name}": values[name] for name in values}
        rows |= runs.record
        rows = {name: jnp.moveaxis(row, -1, 0) for name, row in rows.items()}
        return rows, found._replace(y=y)

    def _rests(self, runs: Runs, state: Lanes, here: Linearisation) -> Bool[Array, " lanes"]:
        """Whether every lane is at a minimum, but for its tolerance, as curvatures tell that have
        small relative errors."""
        shift = 1e-12 * RADAU.real / state.dt
        minimum = here.curvature.shifted(shift)
        anywhere = jnp.where(here.noise == 0, 0, runs.anywhere())
        solved = runs.alike(minimum(jnp.stack([here.gradient, anywhere], axis=1)))
        to_rest = solved[:, 0]
        # A gradient that underflowed says nothing of directions without curvature.
        flat = jnp.sum(solved[:, 1] ** 2, axis=0) * shift**2 > _FLAT**2
        scale = self.rtol * (state.floor + jnp.abs(state.y))[: runs.size]
        away = (jnp.abs(to_rest) + jnp.abs(runs.coasting(state.y))) / scale
        return minimum.definite & ~flat & (runs.rms(away) <= 1)

    def _settle(
        self, runs: Runs, state: Lanes, here: Linearisation
    ) -> tuple[Int[Array, " lanes"], Array]:
        """What the gradient and the Hessian say of a lane that seems to rest, and the smallest
        curvature there; lanes that left their plateau are not looked at."""

        def look(args: tuple) -> tuple[Array, Array]:
            curvature, gradient, noise, scale, coasting, symmetry, found = args
            if isinstance(curvature, LanczosCurvature):
                # Of so many weights nothing is known but the ends of the spectrum.
                lowest = jnp.min(curvature.values) / jnp.max(jnp.abs(curvature.values))
                resting = lowest > trusted_curvature(len(gradient), gradient.dtype)
                return jnp.where(resting, CONVERGED, UNRESOLVED).astype(jnp.int32), lowest
            hessian = curvature.dense()
            resting, _ = comes_to_rest(
                hessian, gradient, noise, scale, coasting=coasting, symmetry=symmetry
            )
            result = jnp.where(resting | found, CONVERGED, UNRESOLVED).astype(jnp.int32)
            return result, smallest_curvature(hessian)

        def one(args: tuple) -> tuple[Array, Array]:
            nothing = lambda _: (jnp.asarray(UNRESOLVED, jnp.int32), jnp.nan)
            return lax.cond(args[0], look, nothing, args[1:])

        scale = self.rtol * (state.floor + jnp.abs(state.y))
        ended = (state.result != CROSSED) & (state.result != EXITED)
        symmetry = over_lanes(lambda flow: flow.symmetry())(runs.flow)
        scale, coasting = scale[: runs.size], runs.coasting(state.y)
        if runs.absent is not None:
            # So that a mean over all weights is one over those that are there.
            scale = scale / jnp.sqrt(runs.mean(jnp.ones_like(scale)))
        found = jnp.zeros_like(ended)
        if isinstance(here.curvature, GradedCurvature):
            found = self._rests(runs, state, here)
        sides = (here.curvature, here.gradient, here.noise, scale, coasting, symmetry, found)
        return lax.map(one, (ended, *jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), sides)))

    def _doubt(self, runs: Runs, state: Lanes, y: Float[Array, "n lanes"]) -> Array:
        """By how much errors of the size of the tolerance move the margin."""

        def margins(loss: Array, y: Array) -> Float[Array, ""]:
            return jnp.sum(runs.margin(state.initial_loss, loss, y))

        # The gradient of the loss has a form of its own.
        by_loss, by_state = jax.grad(margins, (0, 1))(runs.loss(y), y)
        gradient = -runs.dynamics.descent(y[: runs.size, None])[:, 0]
        slope = by_state.at[: runs.size].add(by_loss * gradient)
        scale = self.rtol * (state.floor + jnp.abs(y))
        return jnp.sum(jnp.abs(slope) * scale, axis=0)

    def _locate(self, runs: Runs, state: Lanes, here: Linearisation) -> Exit:
        """Where within the last step every lane meets its exit.

        The false position on the interpolation of the step that crosses; since that is of lower
        order than the method, the step is made again to the time found, and the rest removed
        along the flow.
        """
        dt = state.last_dt
        margin_of = lambda loss, y: runs.margin(state.initial_loss, loss, y)

        def narrow(_: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            low, high, above, below, last, seen, slope = carry
            # Away from the ends lest it creep (Illinois).
            share = jnp.clip(above / jnp.where(above > below, above - below, 1), 0.01, 0.99)
            middle = low + share * (high - low)
            y = state.y + evaluate(state.polynomial, middle)
            margin = margin_of(runs.loss(y), y)
            before = margin > 0
            # Points that lie too close tell the slope no better than those before.
            apart = jnp.abs(middle - last) > 1e-6
            slope = jnp.where(apart, (margin - seen) / jnp.where(apart, middle - last, 1), slope)
            return (
                jnp.where(before, middle, low),
                jnp.where(before, high, middle),
                jnp.where(before, margin, above / 2),
                jnp.where(before, below / 2, margin),
                middle,
                margin,
                slope,
            )

        zero, step = jnp.zeros_like(dt), state.crossing
        slope = (step.below - step.above) / (step.high - step.low)
        ends = (step.low, step.high, step.above, step.below, step.low, step.above, slope)
        low, high, above, below, *_, slope = lax.fori_loop(0, 6, narrow, ends)
        theta = low + (high - low) * above / jnp.where(above > below, above - below, 1)
        span, slope = theta * dt, slope / dt

        # The stages of a shorter step of the same solution lie on its interpolation.
        again = eqx.tree_at(
            lambda s: (s.dt, s.result, s.polynomial, s.last_dt),
            state,
            (
                span,
                jnp.full_like(state.result, RUNNING),
                *_restarted(state.polynomial, theta, span),
            ),
        )
        scale = self.rtol * (state.floor + jnp.abs(state.y)) + jnp.finfo(dt.dtype).tiny
        jacobian = linearise_flow(runs.flow, state.y, here.gradient, here.curvature, span / 2)
        solve = jacobian.solver(RADAU.real / span)
        definite = jnp.ones_like(state.result, bool)
        stages, _, converged, *_ = self._stages(
            runs, again, here.curvature, jacobian, solve, definite, scale
        )
        sought = jnp.stack([evaluate(state.polynomial, theta * c) for c in RADAU.times], axis=1)
        stages = jnp.where(converged, stages, sought)
        y = state.y + stages[:, 2]
        # Not the gradient there: its fast directions hold rounding errors, which the length of a
        # correction would blow up.
        c1, c2, c3 = (state.polynomial[:, k] for k in range(3))
        velocity = (c1 + theta * (2 * c2 + 3 * theta * c3)) / dt

        def correct(_: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            span, y, _, last, seen, slope = carry
            loss = runs.loss(y)
            margin = margin_of(loss, y)
            apart = jnp.abs(span - last) > 1e-9 * span
            slope = jnp.where(apart, (margin - seen) / jnp.where(apart, span - last, 1), slope)
            correction = -margin / jnp.where(slope == 0, 1, slope)
            # Far from the root the bracket knows more.
            correction = jnp.where(jnp.abs(correction) <= 0.1 * dt, correction, 0)
            return span + correction, y + correction * velocity, loss, span, margin, slope

        # The loss comes from before the last correction, which is of the order of rounding.
        start = (span, y, zero, span, zero, slope)
        length = span
        span, y, loss, _, _, slope = lax.fori_loop(0, 5, correct, start)
        return Exit(span, y, loss, slope, length, stages)


def _restarted(
    polynomial: Float[Array, "n 3 lanes"], theta: Array, span: Array
) -> tuple[Array, Array]:
    """An interpolation whose continuation by `span` is the part of `polynomial` up to `theta`,
    to predict the stages of a step over that part."""
    # In u = 1 + t / span, where t runs over the part: t / dt = theta (u - 1).
    c1, c2, c3 = (polynomial[:, k] * theta ** (k + 1) for k in range(3))
    return jnp.stack([c1 - 2 * c2 + 3 * c3, c2 - 3 * c3, c3], axis=1), span


def evaluate(polynomial: Float[Array, "n 3 lanes"], theta: Float[Array, " lanes"]) -> Array:
    c1, c2, c3 = (polynomial[:, k] for k in range(3))
    return theta * (c1 + theta * (c2 + theta * c3))
