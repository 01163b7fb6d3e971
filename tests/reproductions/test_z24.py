import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax.reproductions import _z24_identification as z24
from memjax.reproductions import _z24_signal as signal
from memjax.reproductions._base import in_threads


def weights(kind, modulus=0.9, seed=1):
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, float), z24.make_student(kind, modulus, seed)
    )


def by_steps(kind, student):
    """The impulse response of a student, one step after another, in NumPy."""
    student = jax.tree.map(np.asarray, student)
    if "recurrent" in student:
        hidden, matrix = student["drive"].copy(), student["recurrent"]
        move = lambda h: np.stack([block @ part for block, part in zip(matrix, h, strict=True)])
        read = lambda h: np.sum(student["readout"] * h)
    else:
        parts = lambda name: student[name][0] + 1j * student[name][1]
        modes = parts("modes")
        hidden = parts("drive")
        if kind == "LRU":
            modes = np.exp(-np.exp(student["modes"][0]) + 1j * np.exp(student["modes"][1]))
            hidden = np.exp(student["log_scale"]) * hidden
        elif kind == "normalised":
            hidden = student["scale"] * hidden
        move = lambda h: modes * h
        read = lambda h: np.sum(parts("readout") * h).real
    response = []
    for _ in range(300):
        response.append(read(hidden))
        hidden = move(hidden)
    response[0] += student["skip"]
    return np.array(response)


@pytest.mark.parametrize("kind", z24.BETWEEN)
def test_responses_are_those_of_the_recurrence(kind):
    student = weights(kind)
    exact = by_steps(kind, student)
    found = z24.student_response(student)
    np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-11 * np.abs(exact).max())


def test_the_loss_is_the_mean_over_sampled_inputs():
    student, teacher = weights("block-diagonal"), jnp.asarray(z24.make_teacher(0.9, 1))
    apart = by_steps("block-diagonal", student) - np.asarray(teacher)
    xs = np.random.default_rng(0).normal(size=(4000, 300))
    size = 1024
    outputs = np.fft.irfft(np.fft.rfft(xs, size) * np.fft.rfft(apart, size), size)[:, :300]
    squares = 0.5 * np.mean(outputs**2, axis=1)
    exact = float(z24.expected_loss(student, teacher))
    assert abs(squares.mean() - exact) < 4 * squares.std() / np.sqrt(4000)


@pytest.mark.parametrize("modulus", [0.36, 0.99])
def test_eigenvalues_of_teachers_and_students_begin_at_the_modulus(modulus):
    for seed in range(3):
        matrix = z24.random_recurrence(np.random.default_rng(seed), 10, modulus)
        sizes = np.abs(np.linalg.eigvals(matrix))
        assert np.all((sizes > modulus - 1e-9) & (sizes < 1))
        student = z24.make_student("LRU", modulus, seed)
        sizes = np.exp(-np.exp(student["modes"][0].astype(float)))
        assert np.all((sizes > modulus - 1e-3) & (sizes < 1))
        # Inputs are scaled so that all modes have the same variance.
        scale = np.exp(student["log_scale"].astype(float))
        np.testing.assert_allclose(scale**2 / (1 - sizes**2), 1, rtol=1e-3)


def test_one_update_is_that_of_adam():
    student = jax.tree.map(jnp.asarray, z24.make_student("normalised", 0.68, 0))
    teacher = jnp.asarray(z24.make_teacher(0.68, 0), jnp.float32)
    after, losses = z24.train(student, teacher, jnp.float32(0.01), 2)
    assert losses.shape == (3,)
    first, _ = z24.train(student, teacher, jnp.float32(0.01), 1)
    slopes = jax.grad(z24.expected_loss)(student, teacher)
    for name in student:
        # The first step of Adam has the size of the learning rate.
        moved = np.asarray(first[name] - student[name])
        np.testing.assert_allclose(moved, -0.01 * np.sign(slopes[name]), rtol=2e-2, atol=2e-5)


@pytest.mark.slow
def test_a_small_cell_measured():
    dataset, verdicts = mj.reproduce(
        "z24-identification", progress=False, moduli=(0.36, 0.99), seeds=2, updates=400
    )
    assert dataset["loss"].shape == (6, 2, 7, 2)
    best = z24.best_losses(dataset)
    assert float(best.sel(model="RNN", modulus=0.99)) > float(best.sel(model="LRU", modulus=0.99))
    assert np.isnan(best.sel(model="complex", modulus=0.36))
    assert len(verdicts) == 9
    z24.plot(dataset).draw_without_rendering()


def test_verdicts_say_what_is_published():
    moduli = list(z24.MODULI)
    loss = np.full((6, 7, 2, 2), np.nan)
    for k, name in enumerate(z24.BETWEEN):
        loss[k, -1] = z24.BETWEEN[name]
        if name in z24.PUBLISHED:
            loss[k] = np.array(z24.PUBLISHED[name])[:, None, None]
    axes = {"model": list(z24.BETWEEN), "modulus": moduli, "rank": [0, 1], "seed": [0, 1]}
    ends = np.broadcast_to(np.arange(1.0, 8.0)[:, None, None], loss.shape)
    dataset = xr.Dataset(
        {"loss": (tuple(axes), loss), "plateau_end": (tuple(axes), ends)}, axes, {"updates": 100}
    )
    verdicts = z24.check(dataset)
    assert all(verdict.agrees for verdict in verdicts) and len(verdicts) == 9
    loss[0, -1] = 1e-4
    agreed = [verdict.agrees for verdict in z24.check(dataset)]
    assert agreed[0] is False and agreed[2] is False and agreed[1] is True


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"moduli": (0.5, 1.0)}, "`moduli` must be below 1, got 1"),
        ({"models": ("GRU",)}, "`models`"),
        ({"updates": 0}, "`updates`"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        mj.reproduce("z24-identification", progress=False, **options)


def signal_by_hand(kind, weights, xs):
    """The layers of a network, one step after another, in NumPy."""
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    weights = jax.tree.map(np.asarray, weights)
    found = xs @ weights["ends"][0]
    for layer in weights["layers"]:
        own, states = layer["recurrent"], []
        if kind == "GRU":
            hidden = np.zeros(xs.shape[1])
            for x in found:
                reset = sigmoid(x @ own["reset"] + hidden @ own["reset_back"])
                hold = sigmoid(x @ own["update"] + hidden @ own["update_back"] + own["hold"])
                back = hidden @ own["new_back"] + own["hold_new"]
                new = np.tanh(x @ own["new"] + reset * back)
                hidden = (1 - hold) * new + hold * hidden
                states.append(hidden)
            inner = np.array(states)
        else:
            parts = lambda name, own=own: own[name][0] + 1j * own[name][1]
            values, scale = (parts("eigenvalues"), 1.0) if kind == "complex" else (None, None)
            if values is None:
                values = np.exp(-np.exp(own["moduli"]) + 1j * np.exp(own["phases"]))
                scale = np.exp(own["log_scale"])
            hidden = np.zeros(values.size, complex)
            for x in found:
                hidden = values * hidden + scale * (parts("drive") @ x)
                states.append((parts("readout") @ hidden).real + own["skip"] @ x)
            inner = np.array(states)
        inner = np.asarray(jax.nn.gelu(inner))
        first, second = layer["out"]
        found = found + (inner @ first) * sigmoid(inner @ second)
    return found @ weights["ends"][1]


@pytest.mark.parametrize("kind", signal.NETWORKS)
def test_deep_networks_are_those_of_the_public_code(kind):
    weights = jax.tree.map(jnp.asarray, signal.make_network(kind, 10.0, 6, 0))
    xs = np.random.default_rng(1).normal(size=(20, 6))
    outputs, kept = signal.follow(weights, jnp.asarray(xs))
    np.testing.assert_allclose(outputs, signal_by_hand(kind, weights, xs), rtol=1e-9, atol=1e-10)
    assert len(kept) == 4
    if kind != "GRU":
        values = weights["layers"][0]["recurrent"]
        moduli = (
            np.exp(-np.exp(np.asarray(values["moduli"])))
            if kind == "LRU"
            else np.hypot(*np.asarray(values["eigenvalues"]))
        )
        assert np.all((moduli > 0.9 - 1e-9) & (moduli < 0.95 + 1e-9))


@pytest.mark.slow
def test_mean_squares_of_gradients_are_over_entries():
    weights = jax.tree.map(jnp.asarray, signal.make_network("complex", 3.0, 4, 0))
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(2, 10, 4)))
    _, found = signal.measure(weights, xs)
    slopes = jax.grad(lambda w: signal._loss(w, xs)[0])(weights)
    own = [np.ravel(layer["recurrent"]["eigenvalues"]) for layer in slopes["layers"]]
    others = [
        np.ravel(leaf)
        for layer in slopes["layers"]
        for leaf in (*(layer["recurrent"][n] for n in ("drive", "readout", "skip")), *layer["out"])
    ]
    exact = [np.mean(np.concatenate(part) ** 2) for part in (own, others)]
    np.testing.assert_allclose(signal._share("complex", weights, found), exact, rtol=1e-10)


@pytest.mark.slow
def test_signals_of_small_networks():
    dataset, verdicts = mj.reproduce(
        "z24-signal", progress=False, memories=(1, 100), width=12, times=256, seeds=2, batch=4
    )
    agreed = {verdict.published: verdict.agrees for verdict in verdicts}
    assert agreed["complex: the signal in the last layer grows with the memory (Z24)"]
    assert agreed["LRU: the signal in the last layer does not depend on the memory (Z24)"]
    assert len(verdicts) == 9
    signal.plot(dataset).draw_without_rendering()
    with pytest.raises(ValueError, match="`memories` must be at least 1"):
        mj.reproduce("z24-signal", progress=False, memories=(0.5,))


def test_an_error_gives_up_what_has_not_begun():
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            raise RuntimeError("three")
        time.sleep(0.01)
        return item

    with pytest.raises(RuntimeError, match="three"):
        list(in_threads(work, range(500)))
    assert 3 in begun and len(begun) < 400
    assert sorted(in_threads(abs, range(-5, 0))) == [1, 2, 3, 4, 5]
