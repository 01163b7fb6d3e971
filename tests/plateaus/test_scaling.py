import json
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import xarray as xr

import memjax as mj

REFERENCES = json.loads(
    (Path(__file__).parents[1] / "reference" / "plateau_references.json").read_text()
)


def law(slope, intercept, memories, *, power=0.0, noise=0.0, seeds=4, failed=()):
    """A dataset whose times follow log time = slope / omega + power log omega + intercept."""
    memories = np.asarray(memories, float)
    rng = np.random.default_rng(0)
    log_time = slope * memories - power * np.log(memories) + intercept
    log_time = log_time[:, None] + noise * rng.normal(size=(memories.size, seeds))
    result = np.zeros(log_time.shape, np.int8)
    time = np.exp(log_time)
    for index, code in failed:
        result[index], time[index] = code, np.nan
    return xr.Dataset(
        {"time": (("omega", "seed"), time), "result": (("omega", "seed"), result)},
        {"omega": 1 / memories, "seed": np.arange(seeds)},
    )


def test_fit_recovers_an_exact_law_and_its_corrected_form():
    memories = np.arange(8, 32, 2)
    fit = mj.fit_scaling_law(law(0.7, -2.0, memories))
    plain = fit.sel(correction="none")
    assert float(plain["slope"]) == pytest.approx(0.7, rel=1e-12)
    assert float(plain["intercept"]) == pytest.approx(-2.0, rel=1e-10)
    fit = mj.fit_scaling_law(law(0.7, -2.0, memories, power=2.0))
    corrected = fit.sel(correction="omega^2")
    assert float(corrected["slope"]) == pytest.approx(0.7, rel=1e-12)
    assert float(corrected["intercept"]) == pytest.approx(-2.0, rel=1e-10)
    assert float(fit["slope"].sel(correction="none")) < 0.7


def test_fit_matches_the_normal_equations_and_student_quantile():
    memories = np.arange(8, 32, 2)
    dataset = law(0.7, -2.0, memories, noise=0.3)
    fit = mj.fit_scaling_law(dataset, memory_range=(8, 30)).sel(correction="none")
    x = np.repeat(memories, 4).astype(float)
    y = np.log(dataset["time"].values.ravel())
    design = np.stack([x, np.ones_like(x)], axis=1)
    solution, residual, *_ = np.linalg.lstsq(design, y, rcond=None)
    covariance = residual[0] / (x.size - 2) * np.linalg.inv(design.T @ design)
    # 97.5 % quantile of Student's t with 46 degrees of freedom, from a printed table.
    half = 2.0129 * np.sqrt(covariance[0, 0])
    assert float(fit["slope"]) == pytest.approx(solution[0], rel=1e-10)
    assert float(fit["slope_high"] - fit["slope"]) == pytest.approx(half, rel=1e-4)
    assert int(fit["num_cells"]) == 48


def test_confidence_interval_covers_the_truth_at_its_level():
    memories, hits = np.arange(8, 32, 2), 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        dataset = law(0.7, -2.0, memories)
        dataset["time"] = dataset["time"] * np.exp(0.3 * rng.normal(size=dataset["time"].shape))
        fit = mj.fit_scaling_law(dataset, confidence=0.8).sel(correction="none")
        hits += float(fit["slope_low"]) <= 0.7 <= float(fit["slope_high"])
    assert 140 <= hits <= 180


def test_default_range_is_the_longer_half_of_the_memories_where_all_exited():
    memories = np.arange(8, 32, 2)
    fit = mj.fit_scaling_law(law(0.7, 0.0, memories))
    assert (float(fit["memory_low"]), float(fit["memory_high"])) == (20, 30)
    # One unresolved cell at 1/omega = 30 takes that memory out, not only the cell.
    fit = mj.fit_scaling_law(law(0.7, 0.0, memories, failed=[((11, 2), 4)]))
    assert (float(fit["memory_low"]), float(fit["memory_high"])) == (18, 28)
    assert int(fit["num_cells"]) == 24
    # Memories need not be sorted.
    fit = mj.fit_scaling_law(law(0.7, 0.0, memories[::-1]))
    assert (float(fit["memory_low"]), float(fit["memory_high"])) == (20, 30)
    # At least four memories, where there are that many.
    fit = mj.fit_scaling_law(law(0.7, 0.0, [8, 10, 12, 14, 16]))
    assert int(fit["num_cells"]) == 16


def test_too_few_memories_give_nan_and_not_a_slope():
    fit = mj.fit_scaling_law(law(0.7, 0.0, [8, 10]))
    assert np.isnan(fit["slope"]).all()
    assert int(fit["num_cells"]) == 8


@pytest.mark.parametrize(
    "change, match",
    [
        (lambda d: d.drop_vars("time"), "variable 'time'"),
        (lambda d: d.rename(omega="rate"), "must have 'time' over 'omega', got"),
    ],
)
def test_fit_refuses_other_datasets(change, match):
    with pytest.raises(ValueError, match=match):
        mj.fit_scaling_law(change(law(0.7, 0.0, [8, 10, 12])))


def test_fit_refuses_bad_options():
    dataset = law(0.7, 0.0, [8, 10, 12])
    with pytest.raises(ValueError, match="confidence"):
        mj.fit_scaling_law(dataset, confidence=1.0)
    with pytest.raises(ValueError, match="memory_range"):
        mj.fit_scaling_law(dataset, memory_range=(12, 8))


def test_lower_bound_is_the_published_formula():
    omega = jnp.array([1 / 10, 1 / 20])
    bound = mj.plateau_lower_bound(omega, delta=0.1, decay_rate=0.6, width=4)
    expected = [
        float(mpmath.mpf(1) / n**2 * mpmath.exp(mpmath.mpf(0.6) * n) * mpmath.mpf(0.1) / 2)
        for n in (10, 20)
    ]
    np.testing.assert_allclose(bound, expected, rtol=1e-13)
    # For one neuron the logarithm is the smaller threshold.
    bound = mj.plateau_lower_bound(1.0, delta=3.0, decay_rate=1.0, width=1)
    assert float(bound) == pytest.approx(float(mpmath.e * mpmath.log(4)))


@pytest.mark.parametrize("name", ["omega", "delta", "decay_rate", "width"])
def test_lower_bound_refuses_what_is_not_positive(name):
    arguments = {"omega": 0.1, "delta": 0.1, "decay_rate": 0.6, "width": 4} | {name: 0}
    with pytest.raises(ValueError, match=name):
        mj.plateau_lower_bound(arguments.pop("omega"), **arguments)


def bump_target(memory):
    return mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(1 / memory, 1.0, 0.5)


def test_asymptotics_approach_the_multiprecision_times():
    cases = {
        case["inverse_omega"]: float(case["time"])
        for case in REFERENCES
        if case["start"] == "on-plateau"
        and case["reparam"] == "direct"
        and case["exit"] == "RelativeLossDrop"
        and case["result"] == "exited"
    }
    memories = [20.0, 24.0, 28.0, 32.0, 40.0, 50.0, 60.0]
    predicted = [float(mj.plateau_asymptotics(bump_target(memory), 0.6)) for memory in memories]
    ratios = np.array([cases[m] for m in memories]) / predicted
    assert np.all(np.abs(ratios - 1) < 0.05)
    assert np.all(np.diff(np.abs(ratios - 1)[1:]) < 0)


def test_asymptotics_match_the_formula_in_multiprecision():
    with mpmath.workdps(40):
        sigma, memory = mpmath.mpf(0.5), mpmath.mpf(40)

        def gain(w):
            transform = (
                sigma
                * mpmath.sqrt(mpmath.pi / 2)
                * mpmath.exp(-w * memory + w**2 * sigma**2 / 2)
                * mpmath.erfc((w * sigma**2 - memory) / (sigma * mpmath.sqrt(2)))
            )
            return transform**2 * 2 * w * ((1 + w) / (1 - w)) ** 4

        w = mpmath.mpf(0.6)
        c = -mpmath.diff(lambda w: mpmath.log(gain(w)), w)
        expected = float(1 / (gain(w) * c**2))
    got = jax.jit(mj.plateau_asymptotics)(bump_target(40.0), 0.6)
    assert float(got) == pytest.approx(expected, rel=1e-10)


def test_asymptotics_refuse_a_target_without_remainder():
    with pytest.raises(ValueError, match="remainder"):
        mj.plateau_asymptotics(mj.ExponentialSum([1.0], [1.0]), 0.6)
    with pytest.raises(ValueError, match="silent_rate"):
        mj.plateau_asymptotics(bump_target(20.0), 0.0)
