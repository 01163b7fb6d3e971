import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import example, given, settings
from hypothesis import strategies as st

import memjax as mj

LONG = np.linspace(0, 1000, 1001)
SHORT = np.linspace(0, 100, 401)

DECIDED = {
    "exponential": ("exponential", SHORT, lambda t: np.exp(-t)),
    "slow and fast": ("exponential", SHORT, lambda t: np.exp(-t) + 0.1 * np.exp(-0.1 * t)),
    "three rates": (
        "exponential",
        LONG,
        lambda t: np.exp(-t) + 0.1 * np.exp(-0.1 * t) + 0.01 * np.exp(-0.01 * t),
    ),
    "damped oscillation": (
        "exponential",
        np.linspace(0, 100, 1001),
        lambda t: np.exp(-0.1 * t) * np.abs(np.cos(3 * t)),
    ),
    "airy": ("exponential", SHORT[:161], lambda t: np.abs(scipy.special.airy(t - 6)[0])),
    "bump and exponential": (
        "exponential",
        SHORT[:161],
        lambda t: np.exp(-t) + np.exp(-((t - 10) ** 2) / 0.5),
    ),
    "gaussian": ("exponential", np.linspace(0, 20, 101), lambda t: np.exp(-(t**2) / 2)),
    "power law": ("polynomial", SHORT, lambda t: (1 + t) ** -1.5),
    "slow power law": ("polynomial", SHORT, lambda t: (1 + t) ** -0.5),
    "damped power law": ("polynomial", LONG, lambda t: (1 + 0.1 * t) ** -1.1),
    "oscillating power law": (
        "polynomial",
        np.linspace(0, 300, 3001),
        lambda t: (1 + t) ** -1.5 * np.abs(np.cos(t)),
    ),
    "exponential above a power law": (
        "polynomial",
        LONG,
        lambda t: np.exp(-t) + 1e-3 * (1 + t) ** -1.5,
    ),
    "box": ("finite", SHORT, lambda t: 1.0 * ((t > 9) & (t < 11))),
    "nothing": ("finite", SHORT, lambda t: 0 * t),
}

UNDECIDED = {
    "constant": (SHORT, lambda t: 1 + 0 * t),
    "sine": (SHORT, lambda t: np.abs(np.sin(t))),
    "a short exponential": (np.linspace(0, 2, 41), lambda t: np.exp(-t)),
    "a short power law": (np.linspace(0, 5, 101), lambda t: (1 + t) ** -1.5),
    "the damped power law of 100 steps": (SHORT, lambda t: (1 + 0.1 * t) ** -1.1),
    "a crossover": (SHORT[:41], lambda t: np.exp(-t) + 0.01 * np.exp(-0.01 * t)),
    "a delayed power law": (SHORT, lambda t: np.where(t < 80, 0, (1 + np.abs(t - 80)) ** -1.5)),
    "an exponential on a floor": (SHORT, lambda t: np.exp(-0.1 * t) + np.exp(-5)),
    "a stretched exponential": (SHORT, lambda t: np.exp(-np.sqrt(t))),
    "a tempered power law": (np.linspace(0, 300, 601), lambda t: np.exp(-0.01 * t) / (1 + t)),
}


@pytest.mark.parametrize("name", DECIDED)
def test_verdicts(name):
    verdict, ts, memory = DECIDED[name]
    decay = mj.memory_decay((ts, memory(ts)))
    assert decay.verdict == verdict, decay


@pytest.mark.parametrize("name", UNDECIDED)
def test_what_the_data_do_not_tell(name):
    ts, memory = UNDECIDED[name]
    decay = mj.memory_decay((ts, memory(ts)))
    assert decay.verdict == "undecided", decay
    assert decay.reason


def test_rates_and_exponents():
    decay = mj.memory_decay((SHORT, 3 * np.exp(-0.37 * SHORT)))
    assert decay.rate == pytest.approx(0.37, rel=1e-9)
    assert decay.rate_error < 1e-6 and decay.score > 100
    decay = mj.memory_decay((SHORT[1:], 3 * SHORT[1:] ** -1.7))
    assert decay.exponent == pytest.approx(1.7, rel=1e-9)
    assert decay.exponent_error < 1e-6 and decay.score < -100
    assert decay.exponent_spread == pytest.approx(1, abs=1e-6)
    # Only the range that was asked for.
    decay = mj.memory_decay((SHORT, np.exp(-SHORT)), tail=(3.0, 9.0))
    assert (decay.start, decay.stop, decay.points) == (3.0, 9.0, 25)


def test_memory_functions_are_taken_as_they_are():
    memory = mj.memory_function(mj.PowerLaw(0.5), SHORT)
    assert mj.memory_decay(memory).verdict == "polynomial"
    ts = np.linspace(0, 30, 61)
    model = mj.DiagonalLinearRNN(jnp.ones(2), jnp.array([0.5, 1.0]))
    decay = mj.memory_decay(mj.memory_function(model, ts))
    assert decay.verdict == "exponential" and decay.rate == pytest.approx(0.5, rel=0.05)
    # The rounding that discretised functionals leave of 0 is no memory.
    box = mj.Teacher(mj.Box(1.0, 4.0).response, linear=True)
    assert mj.memory_decay(mj.memory_function(box, ts)).verdict == "finite"


@given(
    power=st.floats(0.3, 4.0),
    rate=st.floats(0.02, 2.0),
    noise=st.sampled_from([0.0, 0.02, 0.1, 0.3]),
    kind=st.sampled_from(["times", "plus"]),
    length=st.sampled_from([20.0, 100.0, 1000.0]),
    seed=st.integers(0, 10**6),
)
# The envelope of noise falls to 0 at the end of the data: with it these had the wrong verdict.
@example(power=1.0, rate=0.4375, noise=0.3, kind="plus", length=20.0, seed=751)
@example(power=1.0118023783553716, rate=0.2, noise=0.02, kind="plus", length=1000.0, seed=532302)
@example(power=2.1202886764499262, rate=0.2, noise=0.3, kind="times", length=20.0, seed=536147)
@settings(max_examples=300, deadline=None)
def test_noise_never_turns_one_law_into_the_other(power, rate, noise, kind, length, seed):
    rng = np.random.default_rng(seed)
    ts = np.linspace(0, length, 301)
    draws = rng.standard_normal(ts.size)
    for law, wrong in ((np.exp(-rate * ts), "polynomial"), ((1 + ts) ** -power, "exponential")):
        noisy = law * np.exp(noise * draws) if kind == "times" else law + noise * 0.1 * draws
        decay = mj.memory_decay((ts, np.abs(noisy)))
        assert decay.verdict not in (wrong, "finite"), decay


def test_a_hump_makes_what_follows_no_faster():
    # Of attention with a bias of a power law: its rates after the hump fall.
    values = [
        0.977, 0.111, 0.0648, 0.0465, 0.0425, 0.0328, 0.0233, 0.0161, 0.0111, 0.00902, 0.0101,
        0.011, 0.0116, 0.0119, 0.012, 0.0119, 0.0116, 0.0111, 0.0106, 0.00992, 0.00925, 0.00856,
        0.00788, 0.00723, 0.00661, 0.00603, 0.00548, 0.00499, 0.00453, 0.00412, 0.00374, 0.0034,
        0.00309, 0.00281, 0.00256, 0.00233, 0.00213, 0.00194, 0.00178, 0.00163, 0.00149, 0.00137,
        0.00126, 0.00116, 0.00107, 0.000987, 0.000912, 0.000844, 0.000782, 0.000725, 0.000673,
    ]  # fmt: skip
    assert mj.memory_decay((2.0 * np.arange(51), values)).verdict == "undecided"


def test_standard_errors_cover():
    rng = np.random.default_rng(0)
    ts = np.linspace(0, 30, 301)
    white = rng.standard_normal((300, ts.size))
    correlated = white.copy()
    for k in range(1, ts.size):
        correlated[:, k] = 0.8 * correlated[:, k - 1] + 0.6 * white[:, k]
    for noise in (white, correlated):
        hits = 0
        for draws in noise:
            # Of the whole range, and without peaks: an envelope that is the memory itself.
            decay = mj.memory_decay((ts, np.exp(-ts + 0.01 * draws)), tail=(1.0, 25.0))
            hits += abs(decay.rate - 1) < 2 * decay.rate_error
        assert 0.85 < hits / len(noise) <= 1


BAD = [
    (lambda: mj.memory_decay((SHORT[:9], SHORT[:9])), "at least 12 entries"),
    (lambda: mj.memory_decay((SHORT, SHORT[1:])), "one value a time"),
    (lambda: mj.memory_decay((SHORT, -SHORT)), "must not be negative"),
    (lambda: mj.memory_decay((SHORT, SHORT * np.nan)), "must be finite"),
    (lambda: mj.memory_decay((SHORT - 1, SHORT)), "must not be negative"),
    (lambda: mj.memory_decay((SHORT, SHORT), tail=1.5), "`tail` must be below 1 as a share"),
    (lambda: mj.memory_decay((SHORT, SHORT), tail=(5.0, 2.0)), "`tail` must be two increasing"),
]


@pytest.mark.parametrize("call, message", BAD)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_anything_but_a_pair_is_refused():
    with pytest.raises(TypeError, match="`memory` must be a MemoryFunction or a pair"):
        mj.memory_decay(SHORT)
    with pytest.raises(TypeError, match="`tail` must be a number"):
        mj.memory_decay((SHORT, SHORT), tail="late")  # pyright: ignore[reportArgumentType]
