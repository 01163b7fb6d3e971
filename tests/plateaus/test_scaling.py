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
    fit = mj.fit_scaling_law(dataset, axis_range=(8, 30)).sel(correction="none")
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
        (lambda d: d.assign(result=d["result"][0]), "must have 'result' over 'omega', 'seed', got"),
        (lambda d: d.assign(time=d["time"][0]), "must have 'time' over 'omega', 'seed', got"),
        (lambda d: d.isel(seed=[]), "at least one cell, got {'omega': 3, 'seed': 0}"),
        (lambda d: d.assign_coords(omega=list("abc")), "must have an axis of numbers, got"),
        (lambda d: d.assign_coords(omega=[0.1, 0.0, 0.2]), "finite values of 'memory', got inf"),
        (lambda d: d.assign_coords(omega=[0.1, -0.1, 0.2]), "positive values of 'memory', got -10"),
    ],
)
def test_fit_refuses_other_datasets(change, match):
    with pytest.raises(ValueError, match=match):
        mj.fit_scaling_law(change(law(0.7, 0.0, [8, 10, 12])))


def test_fit_refuses_bad_options():
    dataset = law(0.7, 0.0, [8, 10, 12])
    with pytest.raises(ValueError, match="confidence"):
        mj.fit_scaling_law(dataset, confidence=1.0)
    with pytest.raises(ValueError, match="axis_range"):
        mj.fit_scaling_law(dataset, axis_range=(12, 8))
    for pool, match in [(["omega"], "other than 'omega', got 'omega'"), (["width"], "got 'width'")]:
        with pytest.raises(ValueError, match=match):
            mj.fit_scaling_law(dataset, pool=pool)


def sweep_of_ones_own(intercept=-1.0):
    """A sweep whose slope against its delay is 0.2 + width / 10."""
    delay, width = np.array([2.0, 4.0, 5.0, 7.0, 8.0, 9.0]), np.array([2, 3, 5])
    dims = ("width", "delay", "copy", "map")
    slopes = 0.2 + width / 10
    offset = np.array([0.0, 0.4])  # of the copies
    log_time = slopes[:, None, None, None] * delay[:, None, None] + offset[:, None] + intercept
    log_time = log_time + np.zeros(2)
    return xr.Dataset(
        {
            "time": (dims, np.exp(log_time)),
            "result": (dims, np.zeros(log_time.shape, np.int8)),
            "decay_rate": (dims, np.broadcast_to(1 / width[:, None, None, None], log_time.shape)),
        },
        {
            "width": width, "delay": ("delay", delay, {"units": "s"}), "copy": [0, 1],
            "map": ["direct", "exp"], "half": ("delay", delay / 2), "delta": 0.02,
        },
    )  # fmt: skip


def test_a_law_is_fitted_along_any_axis_and_in_every_group():
    fit = mj.fit_scaling_law(sweep_of_ones_own(), "delay")
    assert fit["slope"].dims == ("width", "copy", "map", "correction")
    assert fit["correction"].values.tolist() == ["none"]
    for width in (2, 3, 5):
        slopes = fit["slope"].sel(width=width)
        np.testing.assert_allclose(slopes, 0.2 + width / 10, rtol=1e-12)
    np.testing.assert_allclose(fit["intercept"].sel(copy=1), -0.6, rtol=1e-10)
    np.testing.assert_allclose(fit["decay_rate"].sel(width=5), 0.2)
    # The larger half is three, and at least four are taken.
    assert np.all(fit["num_cells"] == 4)
    assert np.all(fit["delay_low"] == 5) and np.all(fit["delay_high"] == 9)
    assert fit.attrs["axis"] == "delay" and fit["slope"].attrs["units"] == "1/s"
    assert "delay" not in fit.coords and float(fit["delta"]) == 0.02
    assert fit["map"].values.tolist() == ["direct", "exp"]
    assert all("long_name" in fit[name].attrs for name in fit if name != "decay_rate")


def test_any_dimensions_enter_a_fit_together():
    dataset = sweep_of_ones_own()
    fit = mj.fit_scaling_law(dataset, "delay", pool=["copy", "map"])
    assert fit["slope"].dims == ("width", "correction")
    np.testing.assert_allclose(fit["intercept"].squeeze(), -0.8, rtol=1e-10)
    assert np.all(fit["num_cells"] == 16)
    # One cell that is missing takes its delay out, wherever it is in the pool.
    dataset["time"][0, -1, 1, 0] = np.nan
    fit = mj.fit_scaling_law(dataset, "delay", pool=["copy", "map"])
    assert fit["delay_high"].values.tolist() == [8, 9, 9]


def test_the_axis_may_be_a_coordinate_along_a_dimension():
    dataset = sweep_of_ones_own()
    fit = mj.fit_scaling_law(dataset, "half")
    np.testing.assert_allclose(fit["slope"].sel(width=2), 0.8, rtol=1e-12)
    assert np.all(fit["half_high"] == 4.5)
    fit = mj.fit_scaling_law(dataset, "width", pool=["copy", "map"])
    np.testing.assert_allclose(fit["slope"].squeeze(), dataset["delay"] / 10, rtol=1e-12)
    assert fit["width_low"].dims == ("delay",) and "half" in fit.coords


def test_the_axis_named_memory_has_the_corrected_fit_too():
    dataset = sweep_of_ones_own()
    dataset = dataset.assign_coords(memory=dataset["delay"])
    fit = mj.fit_scaling_law(dataset)
    assert fit.attrs["axis"] == "memory" and fit["correction"].values.tolist() == [
        "none",
        "omega^2",
    ]
    x, y = np.array([5.0, 7, 8, 9]), np.log(dataset["time"].sel(width=2, copy=0, map="exp"))[2:]
    slope, intercept = np.polyfit(x, y + 2 * np.log(x), 1)
    one = fit.sel(width=2, copy=0, map="exp", correction="omega^2")
    assert float(one["slope"]) == pytest.approx(slope, rel=1e-9)
    assert float(one["intercept"]) == pytest.approx(intercept, rel=1e-9)


def test_memory_is_one_over_omega_and_omega_an_axis_of_its_own():
    dataset = law(0.7, -2.0, np.arange(8, 32, 2))
    xr.testing.assert_identical(mj.fit_scaling_law(dataset), mj.fit_scaling_law(dataset, "memory"))
    fit = mj.fit_scaling_law(dataset, "omega", axis_range=(1 / 31, 1))
    y = np.log(dataset["time"].values[:, 0])
    slope = np.polyfit(dataset["omega"].values, y, 1)[0]
    assert float(fit["slope"].squeeze()) == pytest.approx(slope, rel=1e-9)


def test_an_axis_that_could_be_several_is_asked_for():
    dataset = sweep_of_ones_own()
    with pytest.raises(ValueError, match="`axis` .*name one of 'width', 'delay', 'copy'"):
        mj.fit_scaling_law(dataset)
    with pytest.raises(ValueError, match="`axis` .*name one of 'width', 'delay'"):
        mj.fit_scaling_law(dataset, pool=["copy"])
    # An axis of one value cannot be meant, and what is pooled is not.
    one = dataset.isel(width=[0])
    assert mj.fit_scaling_law(one, pool=["copy"]).attrs["axis"] == "delay"
    assert mj.fit_scaling_law(dataset.isel(delay=0, copy=0)).attrs["axis"] == "width"


@pytest.mark.parametrize(
    "axis, match",
    [
        ("dealy", "`axis` .* got 'dealy'; did you mean 'delay'"),
        ("map", "`axis` must be an axis or a coordinate along one that holds numbers, got 'map'"),
        ("time", "`axis` must be .* got 'time'"),
        ("delta", "`axis` must be .* got 'delta'"),
    ],
)
def test_an_axis_that_is_none_is_refused(axis, match):
    with pytest.raises(ValueError, match=match):
        mj.fit_scaling_law(sweep_of_ones_own(), axis)


def test_an_axis_with_a_value_that_is_no_number_is_refused():
    dataset = sweep_of_ones_own()
    dataset = dataset.assign_coords(half=("delay", [1.0, 2, 3, np.nan, 5, 6]))
    with pytest.raises(ValueError, match="finite values of 'half', got nan"):
        mj.fit_scaling_law(dataset, "half")
    assert mj.fit_scaling_law(dataset, "delay")["slope"].notnull().all()


def test_a_time_of_zero_has_no_logarithm_and_is_not_used():
    dataset = law(0.7, 0.0, np.arange(8, 32, 2))
    dataset["time"][-1, 0] = 0.0
    fit = mj.fit_scaling_law(dataset)
    assert float(fit["memory_high"]) == 28
    assert float(fit["slope"].sel(correction="none")) == pytest.approx(0.7, rel=1e-12)


def test_cells_that_are_missing_from_joined_sweeps_are_not_used():
    whole = sweep_of_ones_own()
    parts = [whole.isel(width=[0]), whole.isel(width=[1], delay=slice(0, 4))]
    options = {"join": "outer", "combine_attrs": "drop_conflicts", "coords": "minimal"}
    joined = xr.concat([part.drop_vars("half") for part in parts], "width", **options)
    assert joined["result"].isnull().any()
    fit = mj.fit_scaling_law(joined, "delay")
    assert np.all(fit["delay_high"].sel(width=2) == 9)
    assert np.all(fit["delay_high"].sel(width=3) == 7)
    np.testing.assert_allclose(fit["slope"].sel(width=3), 0.5, rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{"coords": "different", "compat": "equals"}, {"coords": "minimal", "compat": "override"}],
)
def test_sweeps_of_different_memories_that_are_joined_keep_them(options):
    parts = []
    for width, memories in [(2, np.arange(8.0, 20.0, 2.0)), (4, np.arange(8.0, 32.0, 2.0))]:
        part = law(0.7, 0.0, memories).assign_coords(memory=("omega", memories))
        parts.append(part.expand_dims(width=[width]))
    options = options | {"join": "outer", "combine_attrs": "drop_conflicts"}
    joined = xr.concat(parts, "width", **options)
    assert joined["memory"].ndim == 2 or joined["memory"].isnull().any()
    fit = mj.fit_scaling_law(joined).sel(correction="none")
    np.testing.assert_allclose(fit["slope"], 0.7)
    np.testing.assert_allclose(fit["memory_high"], [18, 30])


def test_the_old_name_of_the_range_goes_on_for_a_release():
    dataset = law(0.7, 0.0, np.arange(8, 32, 2))
    with pytest.warns(DeprecationWarning, match="`memory_range`.*write `axis_range`"):
        fit = mj.fit_scaling_law(dataset, memory_range=(8, 16))
    assert (float(fit["memory_low"]), float(fit["memory_high"])) == (8, 16)


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
