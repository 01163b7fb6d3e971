import matplotlib.figure
import numpy as np
import pytest
import scipy.integrate
import xarray as xr

import memjax as mj
from memjax.reproductions import _s24_reparametrisation as s24

S24 = mj.REPRODUCTIONS["s24-reparametrisations"]
RADII, WIDTHS = np.geomspace(1e-3, 1, 7), [4, 8]


def like(kernel="(1 + t)^-1.5", name="exp", survived=(0.1, 0.1), distance=(0.01, 0.001), drawn=1.0,
         ratios=None, slope=(1e2, 1e6)):  # fmt: skip
    """Errors that jump to infinity beyond a radius a width."""
    fine = RADII <= np.asarray(survived)[:, None] * 1.01
    error = np.where(fine, np.asarray(distance)[:, None], np.inf)[None, None]
    rates = np.geomspace(1e-8, 1, 5)
    names = [name] if ratios is None else list(ratios)
    powers = [-1.0] if ratios is None else list(ratios.values())
    spread = lambda values: np.repeat(values, len(names), axis=1)
    per_width = lambda values: (("kernel", "width"), np.asarray(values)[None])
    dims = ("kernel", "reparametrisation", "width", "radius")
    return xr.Dataset(
        {
            "error": (dims, spread(error)),
            "drawn": (dims, spread(np.where(fine, error / drawn, error))),
            "upper": (dims, spread(error)),
            "distance": per_width(distance),
            "slowest": per_width((1e-2, 1e-4)),
            "amplitude_slope": per_width(slope),
            "norm": ("kernel", [1.0]),
            "criterion": (("reparametrisation", "radius"), np.tile(RADII, (len(names), 1))),
            "gradient_over_weight": (
                ("reparametrisation", "rate"),
                np.stack([rates**power for power in powers]),
            ),
        },
        {
            "kernel": [kernel], "reparametrisation": names, "width": WIDTHS, "radius": RADII,
            "rate": rates,
        },
        {"draws": 30},
    )  # fmt: skip


def first(dataset):
    return S24.check(dataset)[0].agrees


@pytest.mark.parametrize(
    "kernel, name, survived, expected",
    [
        (s24.POWER, "exp", (0.1, 0.1), True),
        (s24.POWER, "exp", (0.1, 0.01), False),
        (s24.POWER, "direct", (0.1, 0.01), True),
        (s24.POWER, "direct", (0.1, 0.1), False),
        # The smallest radius that was tried already costs too much.
        (s24.POWER, "direct", (0, 0), True),
        (s24.TEMPERED, "direct", (0.1, 0.1), True),
        (s24.TEMPERED, "direct", (0.1, 0.001), False),
    ],
)
def test_a_map_is_stable_if_what_it_survives_does_not_shrink(kernel, name, survived, expected):
    assert first(like(kernel, name, survived)) is expected


def test_widths_that_do_not_approximate_the_kernel_do_not_count():
    assert first(like(distance=(0.5, 0.001), survived=(1, 0.01))) is None


def test_draws_are_judged_by_how_much_they_miss():
    verdict = lambda dataset: S24.check(dataset)[1]
    assert verdict(like()).agrees is True
    assert verdict(like(drawn=2.0)).agrees is False
    dataset = like()
    dataset["drawn"][..., -1] = 1.0
    assert verdict(dataset).agrees is False and "2 of" in verdict(dataset).found


def test_the_ratio_of_gradient_to_weight_and_the_amplitudes():
    verdicts = lambda **changes: S24.check(like(**changes))
    assert verdicts(ratios={"best": 0.0, "exp": -1.0})[-2].agrees is True
    assert verdicts(ratios={"best": 0.0, "inverse": 0.0})[-2].agrees is False
    assert verdicts(ratios={"best": -1.0, "exp": -1.0})[-2].agrees is False
    assert verdicts()[-1].agrees is False
    assert verdicts(slope=(10, 10))[-1].agrees is True
    assert verdicts(kernel=s24.TEMPERED)[-1].agrees is None


@pytest.mark.thorough
@pytest.mark.parametrize("name", list(s24.KERNELS))
def test_the_exponential_sums_are_near_their_kernels(name):
    power, scale, shift = s24.KERNELS[name]
    modes = s24.approximation(name, 16)
    value = lambda t: np.exp(-shift * t) * (1 + t / scale) ** -power
    error = lambda u: (
        np.exp(u)
        * abs(np.exp(-np.exp(u) * np.asarray(modes.rates)) @ modes.amplitudes - value(np.exp(u)))
    )
    found = float(mj.functional_distance(s24.target(name), modes))
    expected = scipy.integrate.quad(error, -12, 80 if shift == 0 else 5, limit=2000)[0]
    assert found == pytest.approx(expected, rel=1e-3 if name != s24.DAMPED else 0.02)
    ts = np.geomspace(1e-3, 30, 9)
    np.testing.assert_allclose(s24.target(name)(ts), value(ts), rtol=1e-9)


@pytest.mark.slow
def test_a_small_grid_measured():
    dataset, verdicts = mj.reproduce(
        "s24-reparametrisations",
        progress=False,
        kernels=(s24.POWER,),
        reparametrisations=("direct", "exp"),
        widths=(2, 4),
        radii=(1e-6, 0.1),
        draws=3,
        steps=2,
    )
    cell = dataset.sel(kernel=s24.POWER)
    # Silent modes and perturbed amplitudes do not count.
    nominal = np.broadcast_to(cell["distance"], (2, 2))
    np.testing.assert_allclose(cell["error"][..., 0], nominal, rtol=1e-2)
    assert np.isinf(cell["error"].sel(reparametrisation="direct", width=4)[-1])
    near = cell.sel(reparametrisation="exp", width=4, radius=0.1)
    assert near["drawn"] <= near["error"] <= near["upper"] * (1 + 1e-9)
    np.testing.assert_allclose(
        cell["criterion"].sel(reparametrisation="exp"), np.expm1([1e-6, 0.1])
    )
    assert len(verdicts) == 5
    assert isinstance(S24.plot(dataset), matplotlib.figure.Figure)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="`kernels` must be one of"):
        mj.reproduce("s24-reparametrisations", progress=False, kernels=("exp",))
    with pytest.raises(ValueError, match="`widths`"):
        mj.reproduce("s24-reparametrisations", progress=False, widths=(1,))


def test_infinite_distances_end_a_line_at_a_marker():
    axes = S24.plot(like(survived=(0.1, 0.01))).axes[0]
    marked = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert [np.asarray(line.get_xdata())[0] for line in marked] == pytest.approx(
        [RADII[5], RADII[3]]
    )
