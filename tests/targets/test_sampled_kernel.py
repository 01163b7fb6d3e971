import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memjax.targets import SampledKernel

# Uneven, starting late, ending away from zero, with a flat part and a change of sign.
TIMES = np.array([0.5, 0.6, 1.4, 2.0, 4.5, 4.500001, 9.0])
VALUES = np.array([2.0, -1.0, 0.5, 0.5, 3.0, 1.0, 0.25])


@pytest.fixture
def kernel():
    return SampledKernel(TIMES, VALUES)


def exact_integral(weight, end):
    """The integral of `weight(t, rho(t))` over [0, end], one straight line at a time."""
    total = mp.mpf(0)
    with mp.workdps(30):
        for k in range(len(TIMES) - 1):
            t0, t1, r0, r1 = map(mp.mpf, (*TIMES[k : k + 2], *VALUES[k : k + 2]))
            slope, stop = (r1 - r0) / (t1 - t0), min(t1, end)
            if stop > t0:
                total += mp.quad(
                    lambda t, t0=t0, r0=r0, slope=slope: weight(t, r0 + slope * (t - t0)),
                    [t0, stop],
                )
    return float(total)


def test_kernel_is_the_interpolant_and_zero_outside(kernel):
    t = np.array([-1.0, 0.49, 0.5, 0.55, 1.7, 9.0, 9.01, 100.0])
    np.testing.assert_allclose(kernel(t), [0, 0, 2, 0.5, 0.5, 0.25, 0, 0], atol=1e-14)


HORIZONS = [0.2, 0.55, 1.4, 3.3, 8.0, 20.0, np.inf]


@pytest.mark.thorough
@pytest.mark.parametrize("horizon", HORIZONS)
def test_laplace_and_its_derivatives(kernel, horizon):
    functions = [kernel.laplace, jax.grad(kernel.laplace), jax.grad(jax.grad(kernel.laplace))]
    for order, function in enumerate(functions):
        for s in (1e-7, 1.0, 25.0):
            exact = exact_integral(
                lambda t, rho, s=s, order=order: (-t) ** order * mp.exp(-s * t) * rho, horizon
            )
            np.testing.assert_allclose(function(s, horizon), exact, rtol=2e-14)


@pytest.mark.parametrize("horizon", HORIZONS)
def test_squared_norm(kernel, horizon):
    exact = exact_integral(lambda t, rho: rho**2, horizon)
    np.testing.assert_allclose(kernel.squared_norm(horizon), exact, rtol=1e-14)


def test_responses(kernel):
    t = np.array([-1.0, 0.0, 0.5, 0.57, 1.4, 3.3, 4.5000004, 9.0, 12.0])
    steps = [exact_integral(lambda v, rho: rho, u) for u in t]
    ramps = [exact_integral(lambda v, rho, u=u: (u - v) * rho, u) for u in t]
    np.testing.assert_allclose(kernel.heaviside_response(t), steps, rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(kernel.ramp_response(t), ramps, rtol=1e-13, atol=1e-16)


def test_gradients_in_time_and_horizon(kernel):
    for t in (0.2, 0.57, 3.3, 8.0, 12.0):
        rho, step = kernel(t), kernel.heaviside_response(t)
        np.testing.assert_allclose(jax.grad(kernel.heaviside_response)(t), rho, rtol=1e-12)
        np.testing.assert_allclose(jax.grad(kernel.ramp_response)(t), step, rtol=1e-12)
        np.testing.assert_allclose(jax.grad(kernel.squared_norm)(t), rho**2, rtol=1e-12)
        in_horizon = jax.grad(kernel.laplace, argnums=1)(0.3, t)
        np.testing.assert_allclose(in_horizon, rho * np.exp(-0.3 * t), rtol=1e-12)


def test_gradients_in_the_samples(kernel):
    def functional(times, values):
        kernel = SampledKernel(times, values)
        return kernel.laplace(0.3, 3.3) + kernel.squared_norm() + kernel.ramp_response(5.0)

    gradients = jax.grad(functional, (0, 1))(TIMES[:5], VALUES[:5])
    for k in range(5):
        step = 1e-5 * np.eye(5)[k]
        in_time = functional(TIMES[:5] + step, VALUES[:5]) - functional(
            TIMES[:5] - step, VALUES[:5]
        )
        in_value = functional(TIMES[:5], VALUES[:5] + step) - functional(
            TIMES[:5], VALUES[:5] - step
        )
        np.testing.assert_allclose(gradients[0][k], in_time / 2e-5, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(gradients[1][k], in_value / 2e-5, rtol=1e-6, atol=1e-8)


def test_batches_broadcast(kernel):
    s, horizon = jnp.array([0.1, 1.0, 4.0])[:, None], jnp.array([0.0, 3.3])
    values = jax.jit(lambda kernel: kernel.laplace(s, horizon))(kernel)
    assert values.shape == (3, 2)
    np.testing.assert_array_equal(values[:, 0], 0)
    np.testing.assert_allclose(values[2, 1], kernel.laplace(4.0, 3.3), rtol=1e-13)
    assert kernel.ramp_response(s).shape == (3, 1)
    stacked = jax.vmap(lambda values: SampledKernel(TIMES, values).squared_norm())(
        jnp.stack([VALUES, 3 * VALUES])
    )
    np.testing.assert_allclose(stacked[1], 9 * stacked[0], rtol=1e-14)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.51, 8.99), min_size=1, max_size=6, unique=True),
    st.floats(0.01, 10),
    st.floats(0.1, 12),
)
def test_refining_the_grid_changes_nothing(extra, s, horizon):
    coarse = SampledKernel(TIMES, VALUES)
    times = np.union1d(TIMES, extra)
    fine = SampledKernel(times, np.interp(times, TIMES, VALUES))
    for name, arguments in (
        ("laplace", (s,)),
        ("laplace", (s, horizon)),
        ("squared_norm", (horizon,)),
        ("heaviside_response", (horizon,)),
        ("ramp_response", (horizon,)),
    ):
        np.testing.assert_allclose(
            getattr(fine, name)(*arguments),
            getattr(coarse, name)(*arguments),
            rtol=1e-12,
            atol=1e-14,
        )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0.1, 10), min_size=7, max_size=7), st.floats(-5, 5), st.floats(0.01, 10))
def test_transform_is_linear_in_the_values_and_decreasing(values, factor, s):
    values = np.array(values)
    kernel = SampledKernel(TIMES, values)
    scaled = SampledKernel(TIMES, factor * values)
    exact = factor * kernel.laplace(s)
    np.testing.assert_allclose(scaled.laplace(s), exact, rtol=1e-13, atol=1e-300)
    assert 0 < kernel.laplace(1.01 * s) < kernel.laplace(s)


@pytest.mark.parametrize(
    ("times", "values", "message"),
    [
        ([0.0], [1.0], "`times` must be 1-D with at least 2 entries, got shape"),
        ([0.0, 1.0], [1.0], r"must have the same shape, got \(2,\) and \(1,\)"),
        (
            [[0.0, 1.0]],
            [[1.0, 1.0]],
            r"`times` must be 1-D .*, got shape \(1, 2\)",
        ),
        ([0.0, 2.0, 1.0], [1.0, 1.0, 1.0], "`times` must increase, got 2.0 and then 1.0"),
        ([0.0, 1.0, 1.0], [1.0, 1.0, 1.0], "`times` must increase, got 1.0 and then 1.0"),
        ([-1.0, 1.0], [1.0, 1.0], "`times` must not be negative, got -1.0"),
        ([0.0, np.nan], [1.0, 1.0], "`times` must be finite, got nan"),
        ([0.0, 1.0], [1.0, np.inf], "`values` must be finite, got inf"),
    ],
)
def test_bad_samples_are_refused(times, values, message):
    with pytest.raises(ValueError, match=message) as caught:
        SampledKernel(np.array(times), np.array(values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1"])
@pytest.mark.parametrize(
    "text",
    [
        "0,1\n0.5,0.75\n2,-3e-1\n",
        "time,response\n0,1\n0.5,0.75\n2,-0.3\n",
        "# bench 3\n# ms;mV\ntime (s); response (V, mean)\n0; 1\n0.5;0.75\n\n2; -.3\n",
        "t   rho\n0 1\n 0.5\t0.75\n2.0     -0.3   ",
        "0,1\r\n0.5,0.75\r\n2,-0.3\r\n",
        # Names and units, as instruments write them.
        "t,E_relax\ns, MPa\n0,1\n0.5,0.75\n2,-0.3\n",
        'Sample 5\n\n"t (\u00b5s)","E, mean"\n"0","1"\n"0.5","0.75"\n"2","-0.3"\n',
        "Time\tE\n(s)\t(MPa)\n\n0\t1\t\n0.5\t0.75\t\n2\t-0.3\n",
        # Decimal commas.
        "sep=;\nt;y\n0;1;\n0,5;0,75;\n2;-0,3\n",
        "0,0 1,0\n0,5 0,75\n2,0 -0,3\n",
        "0 1 # first\n0.5 0.75\n# between\n2 -0.3\n",
        " 0.0E+00 , 1.0E+00\n 5.0E-01 , 7.5E-01\n   \n 2.0E+00 , -3.0E-01\n",
    ],
)
def test_csv_dialects(tmp_path, text, encoding):
    path = tmp_path / "kernel.csv"
    path.write_bytes(text.encode("utf-8-sig" if encoding == "utf-8" else encoding))
    kernel = SampledKernel.from_csv(path)
    np.testing.assert_array_equal(kernel.times, [0, 0.5, 2])
    np.testing.assert_array_equal(kernel.values, [1, 0.75, -0.3])


def test_csv_origin(tmp_path):
    path = tmp_path / "kernel.csv"
    path.write_text("-2,7\n-1,8\n0.5,1\n1,0.75\n2.5,-0.3\n")
    kernel = SampledKernel.from_csv(path, origin=0.5)
    np.testing.assert_array_equal(kernel.times, [0, 0.5, 2])
    np.testing.assert_array_equal(kernel.values, [1, 0.75, -0.3])
    with pytest.raises(ValueError, match="`origin` must be finite"):
        SampledKernel.from_csv(path, origin=np.nan)


def test_long_files_are_read(tmp_path):
    path = tmp_path / "kernel.csv"
    table = np.random.default_rng(0).normal(size=(30_000, 3))
    table[:, 1] = np.cumsum(np.abs(table[:, 1]))
    np.savetxt(path, table, delimiter=";", header="a;t;y\n-;s;V", comments="")
    kernel = SampledKernel.from_csv(path, time_column=1, value_column=2)
    np.testing.assert_allclose(kernel.times, table[:, 1], rtol=1e-15)
    np.testing.assert_allclose(kernel.values, table[:, 2], rtol=1e-15)


def test_csv_columns(tmp_path):
    path = tmp_path / "kernel.csv"
    path.write_text("run,value,time\na,1,0\nb,2,3\n")
    kernel = SampledKernel.from_csv(str(path), time_column=2, value_column=1)
    np.testing.assert_array_equal(kernel.times, [0, 3])
    np.testing.assert_array_equal(kernel.values, [1, 2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "t,rho\n0,1\n1,oops\n",
            "`path` line 3 must .* columns 0 and 1, got '1,oops'",
        ),
        ("0,oops\n1,1\n", "`path` line 1 must hold numbers"),
        ("t,rho\nsecond,header\n0,1\n1,x\n", "`path` line 4 must hold numbers"),
        ("0,1\n1_0,2\n2,3\n", "`path` line 2 must hold numbers"),
        ("0,1\n1,2\nEND\n", "`path` line 3 must hold numbers .* got 'END'"),
        ("0;1\n1.234,5;2\n", "`path` line 2 must hold numbers"),
        ("0,1\n1\n", "`path` line 2 must hold numbers"),
        ("0,1\n1;5,2\n2,3\n", "`path` line 2 .* got '1;5,2'; write them with a decimal point"),
        ("t,rho\n0,1\n", "`path` must hold at least 2 samples, got 1"),
        ("", "`path` must hold at least 2 samples, got 0"),
        ("0,1\n1,nan\n", "`values` must be finite, got nan"),
        ("0,1\n2,1\n1,1\n", "`times` must increase, got 2.0 and then 1.0"),
        ("0,1\n0,1\n", "`times` must increase, got 0.0 and then 0.0"),
        ("-1,1\n0,1\n", "`times` must not be negative, got -1.0"),
    ],
)
def test_bad_csv_files_are_refused(tmp_path, text, message):
    path = tmp_path / "kernel.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        SampledKernel.from_csv(path)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` must be a file that exists, got '.*where"):
        SampledKernel.from_csv(tmp_path / "nowhere.csv")
    with pytest.raises(IsADirectoryError, match="`path` must be a file, got the folder"):
        SampledKernel.from_csv(tmp_path)
    with pytest.raises(TypeError, match="`path` must be a path, got None"):
        SampledKernel.from_csv(None)
    binary = tmp_path / "kernel.bin"
    for content in (b"\x89PNG\r\n\x1a\n\x00", b"PK\x03\x04", b"\xff\xfe\x00"):
        binary.write_bytes(content)
        with pytest.raises(ValueError, match="`path` must be a text file"):
            SampledKernel.from_csv(binary)


def test_bad_columns_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`value_column` must be an integer of at least 0, got -1"):
        SampledKernel.from_csv(tmp_path, value_column=-1)
    with pytest.raises(ValueError, match="`time_column` and `value_column` must differ, got 1"):
        SampledKernel.from_csv(tmp_path, time_column=1)
