import builtins

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax.reproductions import _digits
from memjax.reproductions._digit_classifiers import last_hidden, load_digits, make_classifier

DIGITS = mj.REPRODUCTIONS["digits-stability"]
NAMES = ["direct", "exp", "softplus", "inverse", "best"]
RATES, RADII = [1e-3, 1e-2, 1e-1], [0.01, 0.1, 1.0]


def like(reach=(1e-3, 1e-1, 1e-1, 1e-2, 1e-1), kept=(0.01, 0.1, 0.1, 0.1, 0.1), ratios=None,
         right=(0.9, 0.9, 0.9, 0.9, 0.9)):  # fmt: skip
    """A dataset in which every map gets as far as is said."""
    dims, seeds = ("model", "reparametrisation"), 3
    rates, radii = np.asarray(RATES), np.asarray(RADII)
    diverged = rates > np.asarray(reach)[:, None] * 1.01
    accuracy = np.where(diverged, 0.1, np.asarray(right)[:, None])
    worst = np.where(radii > np.asarray(kept)[:, None] * 1.01, 0.1, np.asarray(right)[:, None])
    ratios = np.asarray((1, 0.1, 0.1, 0.1, 0.01) if ratios is None else ratios, float)
    spread = lambda values: np.repeat(values[None, ..., None], seeds, axis=-1)
    runs, balls = (*dims, "learning_rate", "seed"), ("radius", "seed")
    return xr.Dataset(
        {
            "accuracy": (runs, spread(accuracy)),
            "diverged": (runs, spread(diverged)),
            "gradient_over_weight": (runs, spread(ratios[:, None] * np.ones(3))),
            "worst_accuracy": ((*dims, *balls), spread(worst)),
            "drawn_accuracy": ((*dims, "weights", *balls), spread(np.stack([worst] * 2, 1))),
            "chosen": (dims, np.full((1, 5), 1e-3)),
        },
        {
            "model": ["complex modes"], "reparametrisation": NAMES, "learning_rate": RATES,
            "weights": ["all", "rates"], "radius": RADII, "seed": np.arange(seeds),
        },
    )  # fmt: skip


def agreements(dataset):
    return [verdict.agrees for verdict in DIGITS.check(dataset)]


def test_what_is_claimed_agrees_where_it_is_found():
    verdicts = DIGITS.check(like())
    assert [verdict.agrees for verdict in verdicts] == [True] * 4
    assert "direct 0.001, exp 0.1" in verdicts[0].found


@pytest.mark.parametrize(
    "changes, which, expected",
    [
        ({"reach": (1e-2, 1e-1, 1e-2, 1e-2, 1e-1)}, 0, False),
        # Where the direct map trains at every rate that was tried, nothing is decided.
        ({"reach": (1e-1,) * 5}, 0, None),
        ({"reach": (0, 1e-3, 1e-3, 0, 1e-3)}, 0, True),
        ({"ratios": (1, 0.1, 0.1, 0.001, 0.01)}, 1, False),
        ({"kept": (0.1, 0.1, 0.1, 0.1, 0.1)}, 2, False),
        ({"kept": (0, 0.01, 0.01, 0, 0.01)}, 2, True),
        ({"right": (0.9, 0.8, 0.9, 0.9, 0.9)}, 3, False),
    ],
)
def test_and_disagrees_where_it_is_not(changes, which, expected):
    assert agreements(like(**changes))[which] is expected


def test_one_map_alone_is_not_judged():
    assert agreements(like().sel(reparametrisation=["exp"])) == [None] * 4


def test_a_third_of_the_runs_may_diverge():
    dataset = like()
    dataset["diverged"][0, 0, 1, 0] = False
    assert "direct 0.001" in DIGITS.check(dataset)[0].found
    dataset["diverged"][0, 0, 1, :2] = False
    assert "direct 0.01" in DIGITS.check(dataset)[0].found


@pytest.mark.thorough
@pytest.mark.parametrize("model", _digits.MODELS)
def test_the_product_over_pixels_is_the_scan_of_the_layer(model):
    classifier = make_classifier(model, 5, mj.Exp(), jax.random.key(0))
    layer = classifier.layer
    if isinstance(layer, mj.StateSpaceLayer):
        layer = eqx.tree_at(lambda layer: layer.bias, layer, jnp.arange(5.0))
    pixels = jax.random.normal(jax.random.key(1), (7,))
    # The last sample of a held path does not act: one more follows the last pixel.
    scanned = layer.scan(jnp.arange(8.0), jnp.append(pixels, 0.0), interpolation="previous")[-1]
    hidden = last_hidden(layer, pixels[None])[0]
    np.testing.assert_allclose(layer.readout(hidden), scanned, rtol=1e-10)


def test_the_split_is_fixed_and_whole():
    (images, classes), (others, rest) = load_digits()
    assert images.shape == (1347, 64) and others.shape == (450, 64)
    assert images.min() == 0 and images.max() == 1
    assert set(classes) == set(rest) == set(range(10))
    np.testing.assert_array_equal(rest[:5], load_digits()[1][1][:5])


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    whole = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return whole(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"memjax\[notebooks\]"):
        load_digits()


def test_the_learning_rate_is_chosen_among_those_that_train():
    losses = np.array([[0.3, 0.4], [0.1, 0.1], [np.nan, 0.01]])
    assert _digits._choose(losses, np.array([[0, 0], [0, 0], [1, 0]], bool)) == 1


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="`models` must be one of 'real modes'"):
        mj.reproduce("digits-stability", progress=False, models=("GRU",))
    with pytest.raises(ValueError, match="`seeds`"):
        mj.reproduce("digits-stability", progress=False, seeds=0)


@pytest.mark.slow
def test_a_small_training_measured():
    dataset, verdicts = mj.reproduce(
        "digits-stability",
        progress=False,
        models=("real modes",),
        reparametrisations=("exp",),
        learning_rates=(1e-2, 1e300),
        radii=(1e-6, 10.0),
        seeds=2,
        updates=40,
        width=4,
        draws=2,
        steps=2,
    )
    cell = dataset.squeeze(("model", "reparametrisation"))
    assert cell["diverged"].values.tolist() == [[False] * 2, [True] * 2]
    assert np.all(cell["loss"][0] < np.log(10)) and float(cell["chosen"]) == 1e-2
    assert np.all(cell["gradient_over_weight"] > 0)
    np.testing.assert_allclose(cell["worst_accuracy"][0], cell["accuracy"][0], atol=0.01)
    assert np.all(cell["worst_accuracy"][1] < cell["accuracy"][0])
    assert [verdict.agrees for verdict in verdicts] == [None] * 4


def test_the_figure_has_a_row_a_model_and_a_line_a_map():
    figure = DIGITS.plot(like())
    assert isinstance(figure, matplotlib.figure.Figure) and len(figure.axes) == 4
    first = figure.axes[0]
    # The line of the blind guess comes last.
    np.testing.assert_allclose(np.asarray(first.lines[0].get_ydata()), [0.9, 0.1, 0.1])
    assert [line.get_label() for line in first.lines[:5]] == NAMES
