"""Plateaus of a log, on made curves whose plateaus are known.

A found time is right if |log t - log t_true| <= 0.05 log t_true, with t_true from the curve without
noise by bisection: the first time at which it is down to (1 + delta) h, or to (1 - delta) h, of a
level h. The first plateau of a log that begins on it has to start at its first step.
"""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memjax as mj

DELTA = 0.02


def step_times(rng):
    """Uniform steps from 0 or from 1, geometric ones, or uneven ones."""
    stop = 10 ** rng.uniform(3.5, 5.5)
    count = int(10 ** rng.uniform(3, 3.8))
    kind = rng.integers(4)
    if kind < 2:
        return np.arange(kind, stop, max(1, stop // count))
    if kind == 2:
        return np.unique(np.geomspace(1, stop, count).round())
    return np.cumsum(rng.integers(1, max(2, int(2 * stop / count)), count)).astype(float)


def with_noise(rng, losses, most):
    """Noise of its own size up to `most`, and that size: multiplicative, additive, or with heavy
    tails."""
    kind, share = rng.integers(3), 10 ** rng.uniform(-4, np.log10(most))
    if kind == 0:
        return losses * (1 + share * rng.normal(size=losses.size)), share
    if kind == 1:
        return losses + share * losses.max() * rng.normal(size=losses.size), share
    # The standard deviation of Student's t with 4 degrees of freedom is the root of 2.
    noise = share / np.sqrt(2) * rng.standard_t(4, size=losses.size)
    return losses * np.exp(noise), share


def smooth_decay(rng, kind):
    """A decay that only slows down, with or without a floor; or of two rates, alike but for a
    factor of up to 3."""
    t = step_times(rng)
    scale = 10 ** rng.uniform(0, np.log10(t[-1]))
    floor = rng.choice([0.0, 10 ** rng.uniform(-2, 0.5)])
    if kind == "exponential":
        return t, floor + np.exp(-t / scale)
    if kind == "power law":
        return t, floor + (1 + t / scale) ** -rng.uniform(0.005, 2)
    if kind == "slow power law":
        return t, (1 + t) ** -(10 ** rng.uniform(-3, -0.5))
    if kind == "logarithm":
        return t, 3 - 0.6 * np.log1p(t / scale) / np.log1p(t[-1] / scale)
    if kind == "one over logarithm":
        return t, floor + 1 / (1 + np.log1p(t / scale))
    if kind == "two exponentials":
        return t, floor + 0.5 * np.exp(-t / scale) + 0.5 * np.exp(-100 * t / scale)
    rate = rng.uniform(0.3, 3)
    return t, floor + np.exp(-np.where(t < scale, t, scale + rate * (t - scale)) / scale)


DECAYS = (
    "exponential", "power law", "slow power law", "logarithm", "one over logarithm",
    "two exponentials", "two rates",
)  # fmt: skip


@pytest.mark.parametrize("kind", DECAYS)
def test_a_loss_that_only_slows_down_has_no_plateau(kind):
    rng = np.random.default_rng(DECAYS.index(kind))
    for _ in range(15):
        t, clean = smooth_decay(rng, kind)
        losses, noise = with_noise(rng, clean, 0.3)
        found = mj.find_plateaus(t, losses)
        assert found.plateaus == (), (t[:3], t.size, noise, str(found))


class Stairs:
    """Levels joined by sigmoids in log time, after a decay to the first one or from it on."""

    def __init__(self, rng):
        self.times = t = step_times(rng)
        count = rng.integers(1, 4)
        least = np.log(max(20.0, 30 * (t[1] - t[0])))
        self.breaks = np.sort(rng.uniform(least, np.log(t[-1] / 2), count))
        self.slopes = rng.uniform(8, 30, count)
        self.levels = np.cumprod(np.append(1.0, rng.uniform(0.3, 0.85, count)))
        # At the first level, within delta, long before its end, and after 20 steps or more.
        decay = np.exp(self.breaks[0]) * 10 ** rng.uniform(-3, -1.5)
        self.decay = decay if rng.integers(2) and decay > 5 * (t[1] - t[0]) else 0.0
        self.ends = [
            (self.time_of((1 + DELTA) * high), self.time_of((1 - DELTA) * high))
            for high in self.levels[:-1]
        ]
        self.rest = self.time_of((1 + DELTA) * self.levels[-1])

    def __call__(self, t):
        u = np.log(np.maximum(t, 1e-9))[..., None]
        share = 1 / (1 + np.exp(-np.clip(self.slopes * (u - self.breaks), -500, 500)))
        fall = np.exp(-t / self.decay) if self.decay else 0.0
        return self.levels[0] + share @ np.diff(self.levels) + fall

    def time_of(self, level):
        """The first time at which the curve, which falls, is down to a level."""
        low, high = self.times[0], self.times[-1]
        if self(np.array(low)) <= level:
            return low
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (low, middle) if self(np.array(middle)) <= level else (middle, high)
        return high

    def counts(self):
        t = self.times
        return np.array([np.sum((t >= start) & (t <= stop)) for start, stop in self.ends])

    def is_clear(self):
        """Whether plateaus, and the rest, last until their start has tripled, with at least 10
        entries."""
        long = all(stop >= 3 * max(start, 1) for start, stop in self.ends)
        return long and self.times[-1] >= 3 * self.rest and self.counts().min() >= 10

    def most_noise(self):
        """A 60th of the drop times the root of the number of entries, for every plateau; and where
        the curve comes down to the first one slowly, what lets a fall of delta be seen within a
        tenth of an e-fold on both sides of its start."""
        drops = -np.diff(self.levels)
        most = float(np.min(drops * np.sqrt(self.counts()))) / 60
        if self.decay:
            near = np.sum(np.abs(np.log(np.maximum(self.times, 1e-9) / self.ends[0][0])) < 0.1)
            most = min(most, DELTA * np.sqrt(near) / 2)
        return min(0.1, most)


def clear_stairs(rng):
    while True:
        stairs = Stairs(rng)
        if stairs.is_clear():
            return stairs


def error(found, true, first):
    """By how much the logarithm of a time is off, relative to it."""
    if true <= 1 or true == first:
        return 0.0 if found == true else np.inf
    return abs(np.log(found / true)) / np.log(true) if found > 0 else np.inf


@pytest.mark.parametrize("seed", range(10))
def test_plateaus_of_stairs_are_found_where_they_are(seed):
    rng = np.random.default_rng(100 + seed)
    for _ in range(10):
        stairs = clear_stairs(rng)
        t = stairs.times
        losses, noise = with_noise(rng, stairs(t), stairs.most_noise())
        found = mj.find_plateaus(t, losses)
        where = (t[:3], t.size, noise, stairs.ends, stairs.rest, str(found))
        assert len(found.plateaus) == len(stairs.ends), where
        assert found.rest is not None, where
        errors = [error(found.rest.start, stairs.rest, t[0])]
        for plateau, ends in zip(found.plateaus, stairs.ends, strict=True):
            errors += [error(plateau.start, ends[0], t[0]), error(plateau.stop, ends[1], t[0])]
        assert max(errors) <= 0.05, (max(errors), where)
        heights = [segment.height for segment in found.segments]
        np.testing.assert_allclose(heights, stairs.levels, rtol=0.02, err_msg=str(where))
        drops = [plateau.drop for plateau in found.plateaus]
        true = -np.diff(stairs.levels) / stairs.levels[:-1]
        np.testing.assert_allclose(drops, true, atol=0.03, err_msg=str(where))


def test_what_a_plateau_says():
    rng = np.random.default_rng(0)
    t = np.arange(0, 20000, 10.0)
    losses = np.where(t < 2000, 2.0, 0.5) + 0.01 * rng.normal(size=t.size)
    found = mj.find_plateaus(t, losses)
    (plateau,), rest = found.plateaus, found.rest
    assert plateau.start == 0 and plateau.stop == pytest.approx(2000, abs=20)
    assert plateau.length == plateau.stop and plateau.left
    assert plateau.height == pytest.approx(2, rel=1e-3)
    assert plateau.noise == pytest.approx(0.01, rel=0.2)
    assert plateau.drop == pytest.approx(0.75, abs=1e-3)
    assert rest.stop == t[-1] and not rest.left and np.isnan(rest.drop)
    assert [record["left"] for record in found.to_records()] == [True, False]
    assert found.to_records()[0]["length"] == plateau.length
    record = found.to_dict()
    assert record["entries"] == 2000 and record["rest"]["start"] == rest.start
    lines = str(found).splitlines()
    assert lines[0].split() == ["start", "stop", "length", "height", "noise", "drop"]
    assert lines[2].split()[-2:] == ["75", "%"] and lines[3].endswith("not left")
    assert lines[-1].startswith("1 plateau that was left. The loss is flat at the end, from step")


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.1])
def test_a_plateau_that_is_not_left_is_at_rest_from_the_start(noise):
    t = np.arange(3000.0)
    losses = 1 + noise * np.random.default_rng(1).normal(size=t.size)
    found = mj.find_plateaus(t, losses)
    assert found.plateaus == () and found.rest is not None and found.rest.start == 0
    assert found.verdict.startswith("No plateau that was left. The loss is flat at the end")


def test_a_loss_at_its_floor_is_at_rest_and_a_power_law_is_not():
    t = np.arange(1.0, 20000)
    noise = 1 + 0.02 * np.random.default_rng(2).normal(size=t.size)
    found = mj.find_plateaus(t, (1 + np.exp(-t / 300)) * noise)
    assert found.plateaus == () and found.rest is not None
    assert found.rest.start == pytest.approx(300 * np.log(1 / DELTA), rel=0.3)
    for exponent in (0.03, 0.1, 0.5):
        found = mj.find_plateaus(t, t**-exponent * noise)
        assert found.segments == ()
        assert found.verdict == (
            "No plateau that was left. The loss is not flat at the end, step 19999."
        )


def test_a_loss_that_rises_at_the_end_is_not_at_rest():
    t = np.arange(1.0, 10000)
    noise = 0.01 * np.random.default_rng(3).normal(size=t.size)
    found = mj.find_plateaus(t, 0.5 + np.exp(-t / 100) + 0.2 * (t / t[-1]) ** 2 + noise)
    assert found.segments == ()


def test_spikes_and_entries_that_are_not_finite_change_nothing():
    rng = np.random.default_rng(4)
    stairs = clear_stairs(rng)
    t = stairs.times
    losses = stairs(t) * (1 + 0.002 * rng.normal(size=t.size))
    plain = mj.find_plateaus(t, losses)
    spoilt = losses.copy()
    spoilt[50::97] *= 30.0
    spoilt[23::101], spoilt[77::103] = np.nan, np.inf
    found = mj.find_plateaus(t, spoilt)
    assert found.omitted == np.sum(~np.isfinite(spoilt)) and found.steps.size < t.size
    assert len(found.plateaus) == len(plain.plateaus) > 0
    for one, other in zip(found.segments, plain.segments, strict=True):
        assert one.height == pytest.approx(other.height, rel=0.01)
        assert one.stop == pytest.approx(other.stop, rel=0.05)
    assert "without a finite loss left out" in str(found)


def test_a_log_that_was_smoothed_has_no_plateaus_of_its_noise():
    rng = np.random.default_rng(6)
    t = np.arange(1.0, 5000)
    for _ in range(10):
        noise = np.convolve(rng.normal(size=t.size + 19), np.full(20, 1 / 20), "valid")
        assert mj.find_plateaus(t, t**-0.3 * (1 + 0.2 * noise)).plateaus == ()


def log_of(seed):
    rng = np.random.default_rng(seed)
    stairs = clear_stairs(rng)
    return stairs.times, stairs(stairs.times) * (1 + 0.01 * rng.normal(size=stairs.times.size))


def ends(found):
    return np.array([(segment.start, segment.stop) for segment in found.segments])


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 3),
    unit=st.floats(1e-12, 1e12),
    clock=st.floats(1e-6, 1e6),
    shift=st.floats(-10, 10),
)
def test_units_of_loss_and_time_do_not_matter(seed, unit, clock, shift):
    t, losses = log_of(seed)
    plain = mj.find_plateaus(t, losses)
    assert plain.plateaus
    scaled = mj.find_plateaus(t, unit * losses)
    np.testing.assert_allclose(ends(scaled), ends(plain), rtol=1e-9)
    heights = [segment.height for segment in plain.segments]
    np.testing.assert_allclose([s.height / unit for s in scaled.segments], heights, rtol=1e-9)
    # An entry at the end of a bin may go to the next one.
    np.testing.assert_allclose(ends(mj.find_plateaus(clock * t, losses)), clock * ends(plain), 0.02)
    moved = mj.find_plateaus(t, losses + shift, floor=shift)
    np.testing.assert_allclose(ends(moved), ends(plain), rtol=1e-6)
    np.testing.assert_allclose([s.height - shift for s in moved.segments], heights, rtol=1e-6)
    np.testing.assert_allclose(
        [p.drop for p in moved.plateaus], [p.drop for p in plain.plateaus], rtol=1e-6
    )


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_whatever_is_found_is_in_order(seed):
    rng = np.random.default_rng(seed)
    t = np.cumsum(rng.exponential(size=400))
    found = mj.find_plateaus(t, np.exp(np.cumsum(0.1 * rng.normal(size=t.size))))
    times = ends(found).ravel()
    assert np.all(np.diff(times) >= 0) and all(t[0] <= time <= t[-1] for time in times)
    assert all(s.stop >= 2 * s.start for s in found.segments)


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_a_loss_that_falls_by_hundreds_of_decades_has_no_plateau(rate):
    t = np.arange(1.0, 5000)
    noise = 1 + 0.1 * np.random.default_rng(2).normal(size=t.size)
    for losses in (np.exp(-rate * t) * noise, np.exp(-rate * t), np.exp(rate * t) * 1e-200):
        assert mj.find_plateaus(t, losses).plateaus == ()


def test_a_million_entries_take_seconds():
    t = np.arange(1e6)
    noise = 1 + 0.1 * np.random.default_rng(0).normal(size=t.size)
    begin = time.perf_counter()
    found = mj.find_plateaus(t, np.where(t < 1e4, 1.0, 0.6) * noise)
    assert time.perf_counter() - begin < 20
    assert found.plateaus[0].stop == pytest.approx(1e4, rel=0.02)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t, y: (np.sort(np.append(t[1:], t[3])), y), "`steps` must increase, got 3.0 and t"),
        (lambda t, y: (t[::-1], y), "sort the values and remove repeats"),
        (lambda t, y: (t - 5, y), "`steps` must not be negative"),
        (lambda t, y: (np.append(t[1:], np.nan), y), "`steps` must be finite"),
        (lambda t, y: (t, y[1:]), "`steps` and `losses` must have the same shape"),
        (lambda t, y: (t, y * np.nan), "at least 16 finite entries, got 0"),
        (lambda t, y: (t[:9], y[:9]), "`steps` must be 1-D with at least 16"),
        (lambda t, y: (t, -y), "pass a `floor` below them"),
    ],
)
def test_what_cannot_be_a_log_is_refused(change, match):
    t = np.arange(100.0)
    with pytest.raises(ValueError, match=match):
        mj.find_plateaus(*change(t, 1 + np.exp(-t)))


def test_a_ratio_of_one_is_refused():
    with pytest.raises(ValueError, match="`ratio` must be above 1, got 1.0"):
        mj.find_plateaus(np.arange(20.0), np.ones(20), ratio=1.0)
