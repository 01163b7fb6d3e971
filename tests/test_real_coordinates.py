"""Models whose weights are complex, of single precision, of several kinds, or none at all.

The referee of a complex model is the same model with twice as many real weights.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from precision import double

import memjax as mj
from memjax.losses import coordinates, from_real_parts, real_parts

KEY = jax.random.key(0)
TIMES = np.linspace(0.1, 6.0, 12)
TARGET = mj.DampedOscillation([1.0], [0.0], [0.4], [1.5])
MEASURED = np.exp(-0.4 * TIMES) * np.cos(1.5 * TIMES)


class Complex(mj.AbstractModel):
    """A diagonal model as it is often written by hand."""

    poles: jax.Array
    residues: jax.Array
    order: jax.Array
    name: str

    def initial_hidden(self):
        return jnp.zeros((2, self.poles.size), self.poles.real.dtype)

    def vector_field(self, t, hidden, x):
        slope = self.poles * jax.lax.complex(*hidden) + x
        return jnp.stack([slope.real, slope.imag])

    def readout(self, hidden):
        return jnp.real(jnp.sum(self.residues * jax.lax.complex(*hidden)))

    def kernel(self):
        return mj.DampedOscillation(
            self.residues.real, -self.residues.imag, -self.poles.real, self.poles.imag
        )


class Real(mj.AbstractModel):
    """The same, in real weights."""

    poles: tuple
    residues: tuple
    order: jax.Array

    @property
    def complex(self):
        return Complex(
            jax.lax.complex(*self.poles), jax.lax.complex(*self.residues), self.order, ""
        )

    def initial_hidden(self):
        return self.complex.initial_hidden()

    def vector_field(self, t, hidden, x):
        return self.complex.vector_field(t, hidden, x)

    def readout(self, hidden):
        return self.complex.readout(hidden)

    def kernel(self):
        return self.complex.kernel()


POLES, RESIDUES = np.array([-0.5 + 1j, -0.8 + 2j]), np.array([0.3 - 0.2j, 0.5 + 0.4j])
ORDER = jnp.arange(2)
COMPLEX = Complex(jnp.asarray(POLES), jnp.asarray(RESIDUES), ORDER, "by hand")
REAL = Real(
    (jnp.asarray(POLES.real), jnp.asarray(POLES.imag)),
    (jnp.asarray(RESIDUES.real), jnp.asarray(RESIDUES.imag)),
    ORDER,
)


def weights(model):
    return eqx.filter(model, mj.trainable(model))


def in_parts(tree):
    """What is in the weights of either model, as real numbers in one order."""
    return np.concatenate(
        [
            np.ravel([np.real(leaf), np.imag(leaf)] if np.iscomplexobj(leaf) else leaf)
            for leaf in jax.tree.leaves(tree)
        ]
    )


def distance(model):
    """A cheap loss that is no holomorphic function of anything."""
    times, measured = jnp.asarray([TIMES, MEASURED], model.poles.real.dtype)
    kernel = jnp.exp(times[:, None] * model.poles) @ model.residues
    return jnp.mean((kernel.real - measured) ** 2) + 0.01 * jnp.sum(jnp.abs(model.residues) ** 4)


def of_either(function):
    return mj.FunctionLoss(
        lambda model: function(model.complex if isinstance(model, Real) else model)
    )


CHEAP = of_either(distance)


# --- Coordinates ------------------------------------------------------------------------------


def test_coordinates_go_there_and_back():
    tree = {
        "a": jnp.array([[1 + 2j, 3 - 1j]], jnp.complex64),
        "b": jnp.array(2.5, jnp.float32),
        "c": None,
        "d": jnp.array([1j, 2.0]),
        "e": jnp.zeros(0),
    }
    flat, back = coordinates(tree)
    np.testing.assert_array_equal(flat, [1, 3, 2, -1, 2.5, 0, 2, 1, 0])
    again = back(flat)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for new, old in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        assert new.dtype == old.dtype and jnp.array_equal(new, old)
    parts = real_parts(tree)
    assert not any(map(jnp.iscomplexobj, jax.tree.leaves(parts)))
    assert jax.tree.structure(from_real_parts(parts)) == jax.tree.structure(tree)


# --- Complex weights ----------------------------------------------------------------------------


LOSSES = {
    "function": CHEAP,
    "white": mj.WhiteNoiseLoss(TARGET),
    "white, horizon": mj.WhiteNoiseLoss(TARGET, 3.0),
    "coloured": mj.ColouredNoiseLoss(TARGET, 1.0),
    "stationary": mj.StationaryNoiseLoss(TARGET, lambda t: jnp.exp(-jnp.abs(t)), 3.0),
    "path": mj.SampledPathLoss(TARGET, TIMES, np.ones((1, 12)), method="residual"),
}


LONG = ("white, horizon", "coloured", "stationary")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in LOSSES]
)
def test_gradients_point_uphill(name):
    loss = LOSSES[name]
    flat, back = coordinates(weights(COMPLEX))
    value = jax.jit(lambda moved: loss(eqx.combine(back(moved), COMPLEX)))
    gradient = in_parts(loss.gradient(COMPLEX))
    steps = 1e-6 * np.eye(flat.size)
    slopes = [(value(flat + step) - value(flat - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(gradient, in_parts(loss.gradient(REAL)), rtol=1e-12)
    noise = in_parts(loss.gradient_noise(COMPLEX))
    assert np.all(noise >= 0)
    np.testing.assert_allclose(noise, in_parts(loss.gradient_noise(REAL)), rtol=1e-8)


OPTIMISERS = {
    "sgd": optax.sgd(0.05, momentum=0.5),
    "adam": optax.adam(0.01),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "rmsprop": optax.rmsprop(0.01),
    "lion": optax.lion(0.01),
    "adafactor": optax.adafactor(0.01),
    "clipped": optax.chain(optax.clip(0.05), optax.sgd(0.1)),
    "lbfgs": optax.lbfgs(),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimisers_train_parts_as_weights(name):
    training = mj.OptaxTraining(CHEAP, OPTIMISERS[name])
    update = eqx.filter_jit(training.update)
    ends = []
    for model in (COMPLEX, REAL):
        moved = jax.tree.map(jnp.zeros_like, weights(model))
        state = training.start(model)
        for _ in range(5):
            moved, state = update(model, moved, state)
        ends.append(moved)
    np.testing.assert_allclose(in_parts(ends[0]), in_parts(ends[1]), rtol=1e-9, atol=1e-14)
    assert CHEAP(eqx.apply_updates(COMPLEX, ends[0])) < CHEAP(COMPLEX)


def test_stochastic_flows_have_noise_in_both_parts():
    training = mj.StochasticGradientFlow(CHEAP, 0.01, 0.1, key=KEY)
    ends = [
        training.update(m, jax.tree.map(jnp.zeros_like, weights(m)), training.start(m))[0]
        for m in (COMPLEX, REAL)
    ]
    np.testing.assert_allclose(in_parts(ends[0]), in_parts(ends[1]), rtol=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "flow",
    [
        mj.GradientFlow(CHEAP),
        pytest.param(mj.HeavyBall(CHEAP), marks=pytest.mark.slow),
        pytest.param(mj.Nesterov(CHEAP), marks=pytest.mark.slow),
        pytest.param(mj.Adam(CHEAP), marks=pytest.mark.slow),
        mj.OptaxTraining(CHEAP, optax.sgd(0.01), 0.01),
    ],
    ids=lambda flow: type(flow).__name__,
)
def test_plateaus_last_as_long(flow):
    exits = mj.FirstOf(mj.RelativeLossDrop(0.3), mj.ParameterDistance(0.5))
    found = [mj.measure_plateau(flow, model, exits) for model in (COMPLEX, REAL)]
    assert jnp.isfinite(found[0].time)
    # Errors count relative to whole leaves, which are others.
    np.testing.assert_allclose(found[0].time, found[1].time, rtol=1e-6)
    np.testing.assert_allclose(found[0].distance, found[1].distance, rtol=1e-6)
    reached = [in_parts(weights(plateau.model)) for plateau in found]
    np.testing.assert_allclose(reached[0], reached[1], rtol=1e-6, atol=1e-9)


# Also where the state is real, and a complex model is kept in the term.
@pytest.mark.filterwarnings("ignore:Complex dtype support in Diffrax")
def test_flows_are_diffrax_terms_where_diffrax_has_complex_states():
    flow, options = mj.GradientFlow(CHEAP), {"saveat": diffrax.SaveAt(t1=True)}
    solve = lambda term, y0: (
        diffrax.diffeqsolve(term, diffrax.Heun(), 0.0, 0.5, 0.1, y0, **options).ys
    )
    none = lambda leaf: leaf is None
    bare = eqx.tree_at(lambda m: (m.name, m.order), COMPLEX, (None, None), is_leaf=none)
    end = solve(flow, bare)
    displaced = flow.displaced(COMPLEX)
    moved = solve(displaced, displaced.initial_state())[0]
    np.testing.assert_allclose(
        in_parts(weights(end)) - in_parts(weights(COMPLEX)), moved, rtol=1e-10
    )
    np.testing.assert_allclose(displaced.distance(moved), np.linalg.norm(moved), rtol=1e-14)
    mixed = eqx.tree_at(lambda m: m.residues, bare, RESIDUES.real)
    with pytest.raises(TypeError, match="both real and complex arrays.*flow.displaced"):
        solve(flow, mixed)
    with pytest.raises(TypeError, match="nothing but arrays.*'by hand'.*flow.displaced"):
        flow.start(COMPLEX)


@pytest.mark.slow
def test_spectra_are_those_of_the_real_hessian():
    exact = jax.hessian(lambda flat: CHEAP(eqx.combine(coordinates(weights(REAL))[1](flat), REAL)))(
        coordinates(weights(REAL))[0]
    )
    found = mj.hessian_spectrum(CHEAP, COMPLEX)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(exact)[::-1], atol=1e-12)
    first = in_parts(jax.tree.map(lambda leaf: leaf[0], found.eigenvectors))
    np.testing.assert_allclose(exact @ first, found.eigenvalues[0] * first, atol=1e-12)
    assert found.eigenvectors.poles.dtype == complex
    some = mj.hessian_spectrum(CHEAP, COMPLEX, 2, method="lanczos")
    np.testing.assert_allclose(some.eigenvalues, found.eigenvalues[:2], rtol=1e-7)


@pytest.mark.slow
def test_perturbations_are_of_the_parts():
    ask = lambda model: mj.perturbation_error(
        model, CHEAP, [0.01, 0.1], restarts=2, steps=10, draws=4, key=KEY
    )
    found, exact = ask(COMPLEX), ask(REAL)
    np.testing.assert_allclose(found.error, exact.error, rtol=1e-9)
    np.testing.assert_allclose(found.drawn, exact.drawn, rtol=1e-12)
    at = jax.tree.map(lambda leaf: leaf[1], found.perturbation)
    assert np.abs(in_parts(at)).max() == pytest.approx(0.1)
    np.testing.assert_allclose(CHEAP(eqx.apply_updates(COMPLEX, at)), found.error[1], rtol=1e-9)
    # A block as a whole: the Euclidean length of a vector.
    operator = mj.perturbation_error(
        COMPLEX, CHEAP, [0.1], ball="operator", restarts=2, steps=10, draws=4, key=KEY
    )
    block = operator.perturbation.residues[0]
    assert np.linalg.norm(block) == pytest.approx(0.1) and CHEAP(COMPLEX) < operator.error[0]
    assert operator.error[0] > CHEAP(COMPLEX)


# --- Sequence models written by hand --------------------------------------------------------------


class Sequence(eqx.Module):
    """A linear recurrent unit, as papers write it."""

    poles: jax.Array
    input: jax.Array
    readout: jax.Array

    def __call__(self, xs):
        def move(hidden, x):
            hidden = self.poles * hidden + self.input * x
            return hidden, jnp.tanh(jnp.sum(self.readout * hidden).real)

        return jax.lax.scan(move, jnp.zeros_like(self.poles), xs)[1]


class Parts(eqx.Module):
    parts: tuple

    def __call__(self, xs):
        return Sequence(*(jax.lax.complex(*pair) for pair in self.parts))(xs)


LRU = Sequence(
    jnp.array([0.6 + 0.5j, 0.3 - 0.2j]), jnp.array([1 + 0.5j, 1j]), jnp.array([0.3 - 0.2j, 0.1])
)
SAME = Parts(tuple((leaf.real, leaf.imag) for leaf in jax.tree.leaves(LRU)))


@pytest.mark.slow
def test_signals_and_sensitivities_are_real():
    found, exact = (mj.gradient_signal(m, [0, 1, 4], samples=3, key=KEY) for m in (LRU, SAME))
    np.testing.assert_allclose(found.signal, exact.signal, rtol=1e-10)
    np.testing.assert_allclose(found.noise, exact.noise, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(found.effort, exact.effort, rtol=1e-10)
    assert found.weights == exact.weights == 12
    both = exact.sensitivity.parts[0]
    np.testing.assert_allclose(found.sensitivity.poles, both[0] + both[1], rtol=1e-10)
    ts, xs = np.arange(6.0), np.random.default_rng(0).normal(size=(2, 6))
    found, exact = (mj.output_sensitivity(m, ts, xs) for m in (LRU, SAME))
    np.testing.assert_allclose(found.input, exact.parts[1][0] + exact.parts[1][1], rtol=1e-10)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [jnp.complex64, jnp.complex128])
def test_layers_written_by_hand_are_diagnosed(dtype):
    layer = jax.tree.map(lambda leaf: leaf.astype(dtype), LRU)
    diagnosis = mj.diagnose(layer, 4, samples=3)
    assert diagnosis.verdict in ("no plateau", "slow", "plateau")
    assert "12 trained weights" in str(diagnosis)
    assert all(
        isinstance(value, float) and np.isfinite(value) for value in diagnosis.to_dict()["signal"]
    )


def test_complex_outputs_and_losses_are_refused_in_a_line():
    class Outputs(Sequence):
        def __call__(self, xs):
            return xs * self.poles[0]

    outputs = Outputs(LRU.poles, LRU.input, LRU.readout)
    with pytest.raises(TypeError, match="`model` must have real outputs, got dtype complex128"):
        mj.diagnose(outputs, 3)
    loss = mj.FunctionLoss(lambda model: jnp.sum(model.poles))
    for call in (
        lambda: loss(COMPLEX),
        lambda: loss.gradient(COMPLEX),
        lambda: mj.hessian_spectrum(loss, COMPLEX),
        lambda: mj.perturbation_error(COMPLEX, loss, [0.1], key=KEY),
        lambda: mj.perturbation_error(COMPLEX, loss.function, [0.1], key=KEY),
        lambda: mj.OptaxTraining(loss, optax.sgd(0.1)).update(COMPLEX, weights(COMPLEX), None),
        lambda: mj.GradientFlow(loss).displaced(COMPLEX),
    ):
        with pytest.raises(TypeError, match="must be real, got dtype complex"):
            call()


# --- Other kinds of weights -----------------------------------------------------------------------


def _cast(tree, dtype):
    change = lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf
    return jax.tree.map(change, tree)


MIXED = eqx.tree_at(lambda m: m.residues, COMPLEX, COMPLEX.residues.astype(jnp.complex64))
KINDS = {
    "complex64": (_cast(COMPLEX, jnp.complex64), None),
    "float32": (_cast(REAL, jnp.float32), None),
    "mixed": (MIXED, None),
    "float32 without x64": (_cast(REAL, jnp.float32), False),
    "complex64 without x64": (_cast(COMPLEX, jnp.complex64), False),
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if "without" in n else n for n in KINDS]
)
def test_gradients_and_updates_in_other_precisions(name):
    """Right to their precision, and in their precision."""
    model, x64 = KINDS[name]
    exact = in_parts(CHEAP.gradient(COMPLEX))
    with double(x64 is None):
        same = lambda tree: (
            [leaf.dtype for leaf in jax.tree.leaves(tree)]
            == [leaf.dtype for leaf in jax.tree.leaves(weights(model))]
        )
        gradient = CHEAP.gradient(model)
        np.testing.assert_allclose(in_parts(gradient), exact, rtol=1e-4, atol=1e-6)
        assert same(gradient) and same(CHEAP.gradient_noise(model))
        moved = jax.tree.map(jnp.zeros_like, weights(model))
        for training in (
            mj.OptaxTraining(CHEAP, optax.adam(0.01)),
            mj.StochasticGradientFlow(CHEAP, 0.01, 0.1, key=KEY),
        ):
            assert same(training.update(model, moved, training.start(model))[0])
        with pytest.raises(TypeError, match=r"`model` needs float64, got (complex64|float32)"):
            mj.measure_plateau(mj.GradientFlow(CHEAP), model, mj.RelativeLossDrop(0.1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Complex dtype support in Diffrax")
@pytest.mark.parametrize("name", KINDS)
def test_spectra_perturbations_and_flows_in_other_precisions(name):
    model, x64 = KINDS[name]
    top = mj.hessian_spectrum(CHEAP, COMPLEX, 1).eigenvalues
    with double(x64 is None):
        found = mj.hessian_spectrum(CHEAP, model, 1)
        np.testing.assert_allclose(found.eigenvalues, top, rtol=1e-4)
        found = mj.hessian_spectrum(CHEAP, model, 1, method="lanczos")
        np.testing.assert_allclose(found.eigenvalues, top, rtol=1e-4)
        for norm in ("max", "operator"):
            worst = mj.perturbation_error(
                model, CHEAP, [0.1], ball=norm, restarts=2, steps=4, draws=2, key=KEY
            )
            assert worst.error > CHEAP(model)
        displaced = mj.GradientFlow(CHEAP).displaced(model)
        solution = diffrax.diffeqsolve(
            displaced, diffrax.Kvaerno5(), 0.0, 0.1, 0.05, displaced.initial_state(),
            stepsize_controller=diffrax.PIDController(1e-3, 1e-5),
        )  # fmt: skip
        assert np.all(np.isfinite(solution.ys))


@pytest.mark.parametrize("x64", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.slow
def test_cells_in_single_precision_are_diagnosed(x64):
    cell = eqx.nn.GRUCell(1, 4, key=KEY)
    with double(x64):
        diagnosis = mj.diagnose(_cast(cell, jnp.float32), 60, samples=4)
    assert diagnosis.signal.signal.dtype == jnp.float32
    assert diagnosis.verdict == "plateau" and np.isfinite(diagnosis.plateau[0])


def test_squares_of_small_signals_in_single_precision():
    model = jax.tree.map(lambda leaf: (leaf / 4).astype(jnp.complex64), LRU)
    found = mj.gradient_signal(model, [1, 25], samples=2, key=KEY)
    exact = mj.gradient_signal(_cast(model, complex), [1, 25], samples=2, key=KEY)
    # Their squares are below the smallest number of single precision.
    assert found.signal.dtype == jnp.float32 and exact.signal[1] < 1e-17
    np.testing.assert_allclose(found.signal, exact.signal, rtol=1e-3)


@pytest.mark.parametrize("x64", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.slow
def test_closed_forms_take_models_in_single_precision(x64):
    kernel, model = mj.ExponentialSum(1.0, 0.5), mj.DiagonalLinearRNN([1.0, 0.5], [1.0, 0.5])
    exact = mj.WhiteNoiseLoss(kernel).gradient(model)
    radius = mj.perturbation_error(model, kernel, [0.1], restarts=2, steps=4, key=KEY)
    with double(x64):
        short = _cast(model, jnp.float32)
        target = kernel if x64 else _cast(kernel, jnp.float32)
        gradient = mj.WhiteNoiseLoss(target).gradient(short)
        found = mj.perturbation_error(short, target, [0.1], restarts=2, steps=4, key=KEY)
    assert gradient.amplitudes.dtype == found.perturbation.amplitudes.dtype == jnp.float32
    np.testing.assert_allclose(in_parts(gradient), in_parts(exact), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.error, radius.error, rtol=1e-5)


class Distance(eqx.Module):
    def __call__(self, model):
        return distance(model.complex if isinstance(model, Real) else model)


@pytest.mark.slow
def test_sweeps_take_complex_weights():
    times = []
    for base in (eqx.tree_at(lambda m: m.name, COMPLEX, None), REAL):
        flat, back = coordinates(weights(base))

        def build(scale, delta):
            model = eqx.combine(back(scale * flat), base)
            flow = mj.GradientFlow(mj.FunctionLoss(Distance()))
            return flow, model, mj.ParameterDistance(delta)

        axes = {"scale": [1.0, 1.2], "delta": [0.1, 0.3]}
        times.append(mj.sweep(build, axes, progress=False)["time"])
    np.testing.assert_allclose(times[0], times[1], rtol=1e-9)
    assert np.all(np.isfinite(times[0]))


class Nothing(mj.AbstractModel):
    count: jax.Array
    empty: jax.Array

    def initial_hidden(self):
        return jnp.zeros(())

    def vector_field(self, t, hidden, x):
        return x - hidden

    def readout(self, hidden):
        return hidden


def test_models_without_weights_are_refused_in_a_line():
    model = Nothing(jnp.arange(3), jnp.zeros(0))
    loss = mj.SampledPathLoss(TARGET, TIMES, np.ones((1, 12)))
    for call in (
        lambda: mj.measure_plateau(mj.GradientFlow(loss), model, mj.RelativeLossDrop(0.1)),
        lambda: mj.measure_plateau(
            mj.OptaxTraining(loss, optax.sgd(0.1)), model, mj.RelativeLossDrop(0.1)
        ),
        lambda: mj.GradientFlow(loss).displaced(model),
        lambda: mj.HeavyBall(loss).start(model),
        lambda: mj.OptaxTraining(loss, optax.sgd(0.1)).start(model),
        lambda: mj.StochasticGradientFlow(loss, 0.1, 0.1, key=KEY).start(model),
        lambda: mj.hessian_spectrum(loss, model),
        lambda: mj.perturbation_error(model, loss, [0.1], key=KEY),
        lambda: mj.gradient_signal(model, [1], key=KEY),
        lambda: mj.output_sensitivity(model, TIMES, np.ones((1, 12))),
        lambda: mj.diagnose(model, 3),
    ):
        with pytest.raises(ValueError, match="`model` must have trained weights, got none"):
            call()
