"""Plateau measurements side by side, one a lane, each at its own step size and time.

The method is the three-stage Radau IIA formula with a simplified Newton iteration, in the
displacement from the start (Hairer & Wanner, Solving Ordinary Differential Equations II,
Section IV.8). It is the same for every lane and never waits for one: lanes whose step fails
try again while the others go on.
"""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..curvature import GradedCurvature
from ..flows import acceleration, FlowLanes, linearise_flow, step_response
from ..numerics import choose, combine, fold, over_lanes
from ..solvers import RADAU
from ._conclusion import conclude
from ._crossing import first_crossing
from ._lane_exit import Exit, locate_exit
from ._lane_rest import lanes_rest, settle
from ._lane_stages import evaluate, interpolate, look_ahead, SLOW, step_stages
from ._newton import displace
from ._outcomes import (
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
from ._rest import trusted_curvature
from ._rounding import Ledger, sign_patterns, smallest_displacement
from ._runs import Lanes, Runs, unit_norm

# Hairer and Wanner's code lets steps grow by 8 and cuts them by 0.2. Here they have to grow from
# the time of the largest curvature to that of a plateau, over tens of decades: 24 of them take 17
# steps of this growth, and 27 of theirs. With a safety of 0.9 in place of 0.8 twice as many steps
# are refused at tight tolerances.
_LARGEST_GROWTH, _LARGEST_CUT, _BLIND_CUT, _SAFETY = 30.0, 0.2, 0.4, 0.8
# The first step, in times of the largest curvature at a tolerance of 1: with 3 hardly one is
# refused, with 4.5 every one at tight tolerances.
_FIRST = 3.0


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
        here = runs.linearise(y, low)
        fastest = here.curvature.bound()
        # About the time of the largest curvature: a method that is L-stable needs no less, and what
        # is too long is refused.
        dt = _FIRST * self.rtol**0.25 / jnp.where(fastest > 0, fastest, 1)
        dt = jnp.minimum(dt, self.max_time)
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

    def step(self, runs: Runs, state: Lanes) -> Lanes:
        """One attempted step of every lane that is running."""
        running = state.result == RUNNING
        y, dt = state.y, state.dt
        # Made anew in every step where there are closed forms: to carry one along costs more.
        if state.curvature is None:
            here = runs.linearise(y, state.low) if self.full else look_ahead(runs, state)
        else:
            assert isinstance(runs.dynamics, FlowLanes)
            due = jnp.any(running & state.stale)
            here = runs.dynamics.linearise(y[: runs.size], None, state.curvature, due)
        # The shift of Newton's real system, whose factors serve the filter of the error too, and in
        # a gradient flow what rounding does, the slowest direction and the test for rest.
        n, mu = runs.size, RADAU.real / dt
        velocity = runs.velocity(here.gradient, y)
        jacobian = linearise_flow(runs.flow, y, here.gradient, here.curvature, dt / 2)
        solve = jacobian.solver(mu)
        response, resist = step_response(runs.flow, y, here.curvature, mu, solve)
        scale = self.rtol * (state.floor + jnp.abs(y)) + jnp.finfo(y.dtype).tiny
        stages, rest, converged, rate, excess = step_stages(
            runs,
            state,
            here,
            jacobian,
            solve,
            response.definite,
            scale,
            full=self.full,
            compensated=self.compensated,
        )
        y1, low = displace(y, state.low, stages[:, 2], None if rest is None else rest[:, 2])
        loss = runs.loss(y1)

        # The error is the defect of the step's polynomial at its start, divided by what the step
        # resists a change with: unfiltered, a stiff direction that is only followed would be
        # counted at its stiffness.
        defect = combine(RADAU.error, stages) / dt
        error = solve((defect + velocity)[:, None])[:, 0]
        # The step to rest, what errors of the gradient do to the step, and the slowest direction,
        # by one round of the power method in every step.
        sides = [here.gradient, resist(state.direction)]
        sides += [sign * here.noise for sign in sign_patterns(runs.places())]
        solved = runs.alike(response(jnp.stack(sides, axis=1)))
        to_rest, shaken = solved[:, 0], fold(jnp.max, jnp.abs(solved[:, 2:]), 1)

        unit = here.gradient / unit_norm(here.gradient)
        across = lambda x: x - unit * fold(jnp.sum, unit * x)
        direction = across(solved[:, 1])
        size = unit_norm(direction)
        # The response to the resistance multiplies a direction of curvature c by r / (r + c dt) in
        # a gradient flow, with r the real eigenvalue. So the one that escapes fastest comes out
        # longest, and r - r / size is -c dt, the logarithm of its growth within the step. Along the
        # path growth is no error but a shift in time, and of a single weight there is no direction
        # across.
        growth = jnp.where(fold(jnp.any, direction**2 > 0), RADAU.real * (1 - 1 / size), 0)
        # A direction that was damped for long, and starts to grow, must still be found.
        direction = direction / size + 1e-2 * runs.anywhere()

        # Relative to the displacement, of which the larger counts: a weight that returns to its
        # start is not asked for ever more digits.
        bound = self.rtol * (state.floor + jnp.maximum(jnp.abs(y), jnp.abs(y1)))
        size_of_error = runs.rms(error / (bound + jnp.finfo(y.dtype).tiny))
        # A longer step would damp what escapes, and sit on a saddle for ever: past a growth of r
        # the factor changes its sign, and long before that the step no longer resolves it.
        sound = converged & response.definite & (growth <= 1) & jnp.isfinite(size_of_error)
        sound = sound & jnp.isfinite(loss)
        keep = running & sound & (size_of_error <= 1)
        margin = runs.margin(state.initial_loss, loss, y1)
        polynomial = interpolate(stages)

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
        resting = fold(jnp.max, share) <= trusted_curvature(n, y.dtype)
        resting = resting & response.definite & (runs.rms(away) <= 1)
        if isinstance(here.curvature, GradedCurvature):
            # There curvatures far below the shift count, and may be what holds the run back.
            confirm = lambda: lanes_rest(runs, state, here, self.rtol)
            resting = resting & lax.cond(jnp.any(resting), confirm, lambda: resting)
        silent = fold(jnp.all, jnp.abs(here.gradient) <= here.noise)
        resting = resting | (silent & ~fold(jnp.any, jnp.abs(coasting) > scale[:n]))
        advance = keep & ~crossed & ~resting

        factor = self._factor(state, size_of_error, excess, sound, keep)
        time = state.time + jnp.where(advance, dt, 0)
        next_dt = jnp.minimum(dt * factor, self.max_time - time)
        num_steps = state.num_steps + 1
        result = jnp.where(num_steps >= self.max_steps, MAX_STEPS_REACHED, RUNNING)
        result = jnp.where(advance & (time >= self.max_time), MAX_TIME_REACHED, result)
        tiny = ~advance & (next_dt < jnp.finfo(dt.dtype).tiny)
        result = jnp.where(tiny, UNRESOLVED, result)
        result = jnp.where(resting & ~crossed, RESTING, result)
        result = jnp.where(crossed, CROSSED, result)

        length = lambda x: jnp.sqrt(fold(jnp.sum, x**2))
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
            # After a step with hardly an error the predicted growth would be far too small.
            last_error=jnp.maximum(size_of_error, 1e-2),
            margin=margin,
            crossing=crossing,
            nearest=nearest,
            nearest_y=nearest_y,
            after_rejection=jnp.zeros_like(keep),
            result=result.astype(jnp.int32),
            direction=direction / unit_norm(direction),
            curvature=None if runs.closed else here.curvature,
            stale=rate > SLOW,
            ledger=ledger,
            num_steps=num_steps,
            num_accepted_steps=state.num_accepted_steps + 1,
            recording=state.recording,
        )
        new = self._record(runs, new, state.time, jnp.where(advance, dt, 0), polynomial, y)
        stay = eqx.tree_at(
            lambda s: (s.dt, s.result, s.after_rejection, s.num_steps, s.curvature, s.stale),
            state,
            # A step may have failed for its old Hessian: the next attempt has a new one.
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

    def _factor(
        self,
        state: Lanes,
        error: Float[Array, " lanes"],
        excess: Float[Array, " lanes"],
        sound: Bool[Array, " lanes"],
        keep: Bool[Array, " lanes"],
    ) -> Float[Array, " lanes"]:
        """By how much the next step is longer: a predictive controller after Gustafsson's, and a
        bound for Newton's iteration to converge.

        The error estimate is of order 3, hence the fourth roots. On a plateau the error falls by
        about the same factor in every step; a controller that looks at the last error alone would
        always be one step late, and refuse steps where the plateau ends.
        """
        # Below, the growth is at its bound anyway.
        error = jnp.maximum(error, 1e-12)
        factor = _SAFETY * error**-0.25
        first = state.num_accepted_steps == 0
        trend = (state.dt / state.last_dt) * (state.last_error / error) ** 0.25
        # Where a plateau ends, errors grow with far more than the fourth power of the step, as
        # steps reach for the singularity: there the trend knows more than the size of the error.
        predicted = factor**0.25 * trend
        factor = jnp.where(first | ~keep, factor, jnp.minimum(factor, predicted))
        # On most plateaus the error would let steps grow to where the few updates of Newton's
        # iteration do not suffice, and every other step be refused. The last update grows about
        # as an error does: its start is extrapolated from a polynomial of order 3.
        newton = _SAFETY * jnp.maximum(excess, 1e-12) ** -0.25
        factor = jnp.clip(jnp.minimum(factor, newton), _LARGEST_CUT, _LARGEST_GROWTH)
        # No growth right after a refusal, whose reason is still near.
        factor = jnp.where(keep & state.after_rejection, jnp.minimum(factor, 1), factor)
        factor = jnp.where(keep, factor, jnp.minimum(factor, _SAFETY))
        # By how much a step that is not sound was too long is known only where Newton's iteration
        # was about to converge.
        known = (newton > _BLIND_CUT) & (newton < _SAFETY)
        cut = jnp.where(known, newton, _BLIND_CUT)
        return jnp.where(sound, factor, cut)

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
        here = runs.linearise(state.y, state.low)
        found = locate_exit(
            runs, state, here, self.rtol, full=self.full, compensated=self.compensated
        )
        span = jnp.where(crossed, found.span, 0)
        y = jnp.where(crossed, found.y, state.y)
        loss = jnp.where(crossed, found.loss, here.loss)
        time = state.time + span
        if self.curve_times.shape[0] > 0:
            state = self._record(runs, state, state.time, span, state.polynomial)
        distance = runs.distance(y)

        settled, curvature = settle(runs, state, here, self.rtol)
        noise = runs.margin_noise(state.initial_loss, loss, y)
        # A margin that changes by not much more than its rounding within the step tells nothing of
        # how fast it changes: slopes between closer points are those of rounding errors.
        change = state.crossing.above - state.crossing.below
        noise = jnp.where(change > 10 * noise, noise, jnp.inf)
        # One loop, so that the gradient of the margin is compiled once.
        doubt = lax.map(lambda y: self._doubt(runs, state, y), jnp.stack([y, state.nearest_y]))
        result, rounding = conclude(
            state.result,
            settled,
            time=time,
            distance=distance,
            ledger=state.ledger,
            margin=state.margin,
            margin_noise=noise,
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

    def _doubt(self, runs: Runs, state: Lanes, y: Float[Array, "n lanes"]) -> Array:
        """By how much errors of the size of the tolerance move the margin."""

        def margins(loss: Array, y: Array) -> Float[Array, ""]:
            return jnp.sum(runs.margin(state.initial_loss, loss, y))

        # The gradient of the loss has a form of its own, which keeps digits that derivatives of the
        # loss would lose.
        by_loss, by_state = jax.grad(margins, (0, 1))(runs.loss(y), y)
        gradient = -runs.dynamics.descent(y[: runs.size, None])[:, 0]
        slope = by_state.at[: runs.size].add(by_loss * gradient)
        scale = self.rtol * (state.floor + jnp.abs(y))
        return fold(jnp.sum, jnp.abs(slope) * scale)
