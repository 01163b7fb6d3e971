import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax.reproductions import _z24_blocks as blocks
from memjax.reproductions import _z24_covariance as covariance
from memjax.reproductions import _z24_curvature as curvature
from memjax.reproductions import _z24_hessian as z24
from memjax.reproductions import _z24_identification as first
from memjax.reproductions import _z24_systems as systems


def by_steps(weights):
    """The impulse response of a student, one step after another, in NumPy."""
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, float), weights)
    parts = lambda name: weights[name][0] + 1j * weights[name][1]
    if "recurrent" in weights:
        hidden, move = weights["drive"].copy(), weights["recurrent"]
        push = lambda h: np.einsum("hij,hj->hi", move, h)
        read = lambda h: np.sum(weights["readout"] * h)
    else:
        hidden, values = parts("drive"), parts("modes")
        if "step" in weights:
            step = np.log1p(np.exp(weights["step"]))
            hidden, values = step * hidden, np.exp(step * values)
        elif "log_scale" in weights:
            hidden = np.exp(weights["log_scale"]) * hidden
            values = np.exp(-np.exp(weights["modes"][0]) + 1j * np.exp(weights["modes"][1]))
        push = lambda h: values * h
        read = lambda h: np.sum(parts("readout") * h).real
    found = []
    for _ in range(300):
        found.append(read(hidden))
        hidden = push(hidden)
    found[0] += weights["skip"]
    return np.array(found)


@pytest.mark.parametrize("kind", ["RNN", "complex", "LRU", "S4"])
def test_students_are_those_of_the_recurrence(kind):
    heads = 2 if kind == "RNN" else 1
    student = systems.make_student(kind, 0.9, 1, 6, heads, 0.3)
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), student)
    exact = by_steps(weights)
    found = systems.response(weights)
    np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-11 * np.abs(exact).max())


@pytest.mark.parametrize("cone", [0.1, np.pi])
def test_phases_are_in_the_cone(cone):
    for seed in range(3):
        matrix = first.random_recurrence(np.random.default_rng(seed), 10, 0.99, cone)
        values = np.linalg.eigvals(matrix)
        # What was negative is real, and smaller by the cosine.
        least = np.where(np.abs(values.imag) < 1e-9, 0.99 * abs(np.cos(cone)), 0.99)
        assert np.all((np.abs(values) > least - 1e-9) & (np.abs(values) < 1))
        assert np.all(np.abs(np.angle(values)) < cone + 1e-9)
        student = systems.make_student("LRU", 0.99, seed, 16, cone=cone)
        phases = np.exp(student["modes"][1].astype(float))
        assert np.all((phases < cone + 1e-3) | (phases > 2 * np.pi - cone - 1e-3))


def test_the_loss_of_a_batch_is_that_of_the_sequences():
    student = systems.make_student("complex", 0.9, 1, 6)
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), student)
    teacher = systems.make_teacher(0.9, 1)
    inputs = np.random.default_rng(0).normal(size=(3, 300))
    apart = by_steps(weights) - teacher
    errors = np.array([np.convolve(row, apart)[:300] for row in inputs])
    found = systems.sampled_loss(weights, jnp.asarray(teacher), jnp.asarray(inputs))
    assert float(found) == pytest.approx(0.5 * np.mean(errors**2), rel=1e-9)


@pytest.mark.thorough
def test_effective_rates_are_how_far_a_slope_of_one_moves():
    student = systems.make_student("complex", 0.9, 1, 6)
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), student)
    teacher, key = jnp.asarray(systems.make_teacher(0.9, 1)), jax.random.key(0)
    after, losses, rates = systems.train_sampled(weights, teacher, jnp.asarray(0.01), key, 1)
    inputs = jax.random.normal(jax.random.split(key, (1, 1))[0, 0], (128, 300))
    slopes = jax.grad(systems.sampled_loss)(weights, teacher, inputs)
    assert float(losses[0]) == pytest.approx(float(systems.sampled_loss(weights, teacher, inputs)))
    for name, slope in slopes.items():
        moved = np.asarray(after[name] - weights[name])
        np.testing.assert_allclose(moved, -0.01 * np.sign(slope), rtol=1e-4)
        mean = (0.9 * 0.1 * slope + 0.1) / (1 - 0.9**2)
        square = (0.999 * 0.001 * slope**2 + 0.001) / (1 - 0.999**2)
        exact = 0.01 * mean / (np.sqrt(square) + 1e-8)
        np.testing.assert_allclose(rates[name][0], exact, rtol=1e-9)


@pytest.mark.parametrize("model", curvature.MODELS)
def test_hessians_are_second_differences_of_the_loss(model):
    weights = curvature.solutions(4, 0)[model]
    goal = by_steps(weights)
    slopes, names = curvature.slopes_of(weights)
    assert len(names) == slopes.shape[1] and goal.size == 300
    shares = 1 - np.arange(300) / 300
    rng = np.random.default_rng(5)
    for _ in range(3):
        way = rng.normal(size=len(names))
        moved, size = {}, 1e-7
        for sign in (1, -1):
            at, place = 0, {}
            for name in sorted(weights):
                leaf = np.asarray(weights[name])
                place[name] = leaf + sign * size * way[at : at + leaf.size].reshape(leaf.shape)
                at += leaf.size
            moved[sign] = by_steps(place)
        # The loss along the way is s^2/2 times the curvature, from the difference of responses.
        apart = (moved[1] - moved[-1]) / (2 * size)
        exact = np.sum(shares * apart**2)
        assert np.sum((slopes @ way) ** 2) == pytest.approx(exact, rel=1e-5)


def test_all_models_are_one_system():
    for width in (4, 8):
        responses = [by_steps(weights) for weights in curvature.solutions(width, 1).values()]
        for other in responses[1:]:
            np.testing.assert_allclose(other, responses[0], atol=1e-9)
        sizes = np.abs(np.linalg.eigvals(curvature.make_system(width, 1)[0]))
        assert np.all((sizes > 0.99 - 1e-9) & (sizes < 0.993 + 1e-9))


def test_what_is_said_of_a_hessian():
    scales = np.array([100.0, 10.0, 1.0])
    found = curvature.describe_hessian(np.diag(scales), 3, 2)
    assert found["largest"] == pytest.approx(1e4) and found["condition"] == pytest.approx(1e4)
    assert found["spread"] == pytest.approx(1) and found["scaled_largest"] == pytest.approx(1)
    # Turned by a rotation of all weights, no scales of weights undo it.
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = curvature.describe_hessian(np.diag(scales) @ turn, 3, 1)
    assert turned["condition"] == pytest.approx(1e4)
    assert turned["spread"] == pytest.approx(1 / np.sum(turn[0] ** 4))
    assert turned["scaled_condition"] > 10
    correlation = turn.T @ np.diag(scales**2) @ turn
    root = np.sqrt(np.diag(correlation))
    exact = np.linalg.eigvalsh(correlation / np.outer(root, root))[-1]
    assert turned["scaled_largest"] == pytest.approx(exact)


@pytest.mark.thorough
def test_a_hessian_for_which_divide_and_conquer_does_not_converge():
    slopes, _ = curvature.slopes_of(curvature.solutions(32, 4)["LRU"])
    found = curvature.describe_hessian(slopes, 65, 16)
    exact = np.linalg.eigvalsh(slopes.T @ slopes)[-1]
    assert found["largest"] == pytest.approx(exact) and 1 < found["spread"] < 225


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_hessian_in_eigenvalues_is_a_sum_over_lags(correlation):
    rng = np.random.default_rng(0)
    values = rng.uniform(0.5, 0.9, 3) * np.exp(1j * rng.uniform(-np.pi, np.pi, 3))
    products = rng.normal(size=3) + 1j * rng.normal(size=3)
    lags = np.arange(1, 400)
    turned = products * lags[:, None] * values ** (lags[:, None] - 1)
    slopes = np.concatenate([turned.real, -turned.imag], axis=1)
    exact = slopes.T @ correlation ** np.abs(lags[:, None] - lags) @ slopes
    found = covariance.eigenvalue_hessian(values, products, correlation)
    np.testing.assert_allclose(found, exact, rtol=1e-8, atol=1e-8 * np.abs(exact).max())


def test_roots_of_hessians_in_cones(monkeypatch):
    seen, exact = {}, covariance.eigenvalue_hessian

    def hessian(values, products, correlation):
        seen["values"], seen["hessian"] = values, exact(values, products, correlation)
        return seen["hessian"]

    monkeypatch.setattr(covariance, "eigenvalue_hessian", hessian)
    slopes = covariance.cone_slopes(0.1, 0.99, 0)
    assert slopes.shape == (20, 20)
    assert np.all(np.abs(np.angle(seen["values"])) <= 0.1 * np.pi)
    assert np.all((np.abs(seen["values"]) >= 0.99) & (np.abs(seen["values"]) < 1))
    size = np.abs(seen["hessian"]).max()
    assert size > 1e4
    np.testing.assert_allclose(slopes.T @ slopes, seen["hessian"], atol=1e-12 * size)
    found = curvature.describe_hessian(slopes, 20, 5)
    assert 1 < found["scaled_largest"] < 20


@pytest.mark.thorough
def test_a_small_reproduction_of_hessians():
    dataset, verdicts = mj.reproduce(
        "z24-hessian", progress=False, widths=(4,), seeds=2, updates=20, runs=1,
        students=("complex", "LRU"),
    )  # fmt: skip
    assert len(verdicts) == 9
    assert verdicts[3].agrees and [v.agrees for v in verdicts[5:7]] == [None, None]
    assert np.all(dataset["spread"].sel(model="dense") > dataset["spread"].sel(model="complex"))
    assert int(np.sum(np.isfinite(dataset["rate"].isel(quantile=0)))) == 8
    z24.plot(dataset).draw_without_rendering()


def test_blocks_agree_with_themselves():
    loss = np.full((3, 5, 8, 2), np.nan)
    for k, name in enumerate(blocks.PUBLISHED):
        loss[k] = np.array(blocks.PUBLISHED[name])[:, None, None]
    heads = np.broadcast_to(np.array(blocks.BLOCKS)[:, None, None], (2, 6, 5, 2))
    steps = np.broadcast_to(np.array(blocks.STEPS)[:, None, None], (6, 1, 20))
    axes = {"model": list(blocks.PUBLISHED), "cone": list(blocks.CONES), "rank": range(8)}
    others = {"seed": [0, 1], "heads": list(blocks.HEADS), "block_rank": range(5)}
    others["start"] = list(blocks.STARTS)
    last = {"run": [0], "part": (0.5 + np.arange(20)) / 20}
    dataset = xr.Dataset(
        {
            "loss": (("model", "cone", "rank", "seed"), loss),
            "block_loss": (("start", "heads", "block_rank", "seed"), heads),
            "step": (("heads", "run", "part"), steps),
        },
        axes | others | last,
        {"updates": 10_000},
    )
    verdicts = blocks.check(dataset)
    assert len(verdicts) == 10
    assert all(verdict.agrees for verdict in verdicts)
    loss[0] *= 1e-4
    agreed = [verdict.agrees for verdict in blocks.check(dataset)]
    assert agreed[0] is False and agreed[3] is False and agreed[1] is True


@pytest.mark.thorough
def test_a_small_reproduction_of_blocks():
    dataset, verdicts = mj.reproduce(
        "z24-blocks", progress=False, models=("LRU",), cones=(0.1, 1.0), heads=(2, 32), seeds=1,
        updates=100,
    )  # fmt: skip
    assert dataset["loss"].shape == (1, 2, 8, 1) and dataset["step"].shape == (2, 1, 20)
    assert len(verdicts) == 6
    assert [verdict.agrees for verdict in verdicts[-2:]] == [None, None]
    blocks.plot(dataset).draw_without_rendering()


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("z24-hessian", {"widths": (5,)}, "`widths` must be even, from 4 to 128, got 5"),
        ("z24-hessian", {"students": ("GRU",)}, "`students`"),
        ("z24-hessian", {"runs": 0}, "`runs`"),
        ("z24-blocks", {"cones": (2.0,)}, "`cones` must be at most 1, got 2"),
        ("z24-blocks", {"heads": (3,)}, "`heads` must divide 64, got 3"),
        ("z24-blocks", {"models": ("S4",)}, "`models`"),
    ],
)
def test_bad_options_are_refused(name, options, says):
    with pytest.raises(ValueError, match=says):
        mj.reproduce(name, progress=False, **options)
