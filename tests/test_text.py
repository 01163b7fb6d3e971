"""Results print well, in a terminal and in a notebook, and wherever JAX has them in its hands."""

import dataclasses
import re
from html.parser import HTMLParser
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj
from memjax._text import describe, readable
from memjax.plateaus import OUTCOMES
from memjax.plateaus._outcomes import as_result
from test_wrong_input import RESULTS

# What memjax returns, without what it hands to a user's own functions or is called itself.
PRINTED = sorted(RESULTS - {"DisplacedFlow", "RESULTS", "SampledFunctional", "TrainingState"})


def curve():
    return mj.LossCurve(jnp.geomspace(1, 1e4, 9), jnp.linspace(1, 0.98, 9), jnp.arange(9.0))


def plateau(time=1556.4653871234, code=0):
    model = mj.DiagonalLinearRNN([1.0, 0.0], [1.0, 0.6])
    number = jnp.asarray(0.25) + 0 * time
    return mj.Plateau(
        time=jnp.asarray(time),
        result=as_result(jnp.asarray(code) + 0 * jnp.asarray(time).astype(int)),
        time_reached=number,
        loss=number,
        distance=number,
        model=model,
        initial_loss=number,
        curve=curve(),
        curvature=number,
        rounding=number,
        stats={"num_steps": jnp.asarray(312), "num_rejected_steps": jnp.asarray(4)},
    )


def rows(text):
    return dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in text.splitlines()[1:])


class Cells(HTMLParser):
    """The text of the cells of a table."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        # Of these nothing is ever closed.
        if tag != "img":
            self.open.append(tag)
        if tag in ("th", "td"):
            self.found.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("th", "td"):
            self.found[-1] += data


@pytest.mark.parametrize("name", PRINTED)
def test_every_result_is_written_for_people(name):
    cls = getattr(mj, name)
    assert "_repr_html_" in vars(cls) and "__str__" in vars(cls)


def test_a_plateau_says_how_long_it_was_and_how_it_ended():
    text = str(plateau())
    assert text.splitlines()[0] == "Plateau"
    found = rows(text)
    assert float(found["time"]) == pytest.approx(1556.4653871234, rel=1e-6)
    assert found["result"] == "exited: The exit condition was met."
    assert found["num_steps"] == "312" and found["num_rejected_steps"] == "4"
    assert "DiagonalLinearRNN" in found["model"] and "LossCurve" in found["curve"]
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("code", range(len(OUTCOMES)))
def test_every_outcome_is_named_and_long_ones_are_wrapped(code):
    text = str(plateau(np.nan, code))
    assert f"{OUTCOMES[code]}: " in text
    assert mj.RESULTS[getattr(mj.RESULTS, OUTCOMES[code])] in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100


def test_a_curve_shows_moments_of_it_in_columns():
    lines = str(curve()).splitlines()
    found = [re.findall(r"\S+", line)[1:7] for line in lines[1:4]]
    places = [0, 2, 3, 5, 6, 8]
    for line, values in zip(found, (curve().times, curve().loss, curve().distance), strict=True):
        np.testing.assert_allclose([float(e) for e in line], values[np.array(places)], rtol=1e-3)
    ends = [[m.end() for m in re.finditer(r"\S+", line)][1:7] for line in lines[1:4]]
    assert ends[0] == ends[1] == ends[2]
    assert all(line.endswith("of 9") for line in lines[1:4])


def test_a_notebook_shows_the_same_as_a_table():
    cells = Cells(plateau()._repr_html_()).found
    assert dict(zip(cells[::2], map(str.strip, cells[1::2]), strict=True)) == {
        name: text.strip() for name, text in rows(str(plateau())).items()
    }


def test_text_of_ones_own_is_no_markup():
    verdict = mj.Verdict("tau < 1 & more", "<script>", True)
    html = verdict._repr_html_()
    assert "<script>" not in html and "tau &lt; 1 &amp; more" in html
    assert Cells(html).found[1::2] == ["tau < 1 & more", "<script>", "True"]


def test_batches_are_written_entry_by_entry_and_their_outcomes_counted():
    many = jax.vmap(plateau)(jnp.array([1.0, 2.0, 3.0]), jnp.array([0, 4, 0]))
    found = rows(str(many))
    assert [float(entry) for entry in found["time"].split()] == [1, 2, 3]
    assert found["result"] == "2 exited, 1 unresolved"
    assert "2 exited, 1 unresolved" in many._repr_html_()


def test_what_jax_traces_is_written_by_its_shape():
    seen = []

    def look(value):
        seen.append((str(value), value._repr_html_()))
        return value.time

    jax.jit(look)(plateau())
    jax.vmap(look)(jax.vmap(plateau)(jnp.arange(1.0, 4.0)))
    jax.grad(lambda time: look(plateau(time)))(1.0)
    assert len(seen) == 3
    for text, html in seen:
        assert rows(text)["time"] == "float64[], traced"
        assert "float64[], traced" in html


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: jax.eval_shape(lambda: tree),
        lambda tree: jax.tree.map(lambda leaf: None, tree),
        lambda tree: jax.tree.map(lambda leaf: object(), tree),
        lambda tree: jax.tree.map(lambda leaf: 0, tree),
        lambda tree: eqx.filter(tree, eqx.is_inexact_array),
        lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tree),
        lambda tree: jax.tree.map(np.asarray, tree),
    ],
    ids=["shapes", "none", "objects", "axes", "filtered", "stacked", "numpy"],
)
def test_trees_of_anything_print(change):
    for tree in (plateau(), curve()):
        changed = change(tree)
        assert str(changed).startswith(type(tree).__name__)
        assert type(tree).__name__ in changed._repr_html_()


def test_a_deleted_array_prints():
    value = curve()
    value.loss.delete()
    assert "float64[9]" in str(value)


def test_a_report_of_ones_own_is_kept_but_for_batches():
    @readable()
    class Own(eqx.Module):
        """A result."""

        value: Any

        def __str__(self) -> str:
            return f"it is <{float(self.value):g}>"

    assert str(Own(jnp.asarray(2.0))) == "it is <2>"
    assert Own(jnp.asarray(2.0))._repr_html_() == "<pre>it is &lt;2&gt;</pre>"
    assert str(Own(jnp.array([1.0, 2.0]))).split() == ["Own", "value", "1", "2"]
    assert jax.jit(lambda own: (str(own), own.value)[1])(Own(jnp.asarray(2.0))) == 2


def diagnosis():
    steps = jnp.arange(1, 6)
    model = mj.DiagonalLinearRNN([0.5, 0.5], [1.0, 0.1])
    signal = mj.GradientSignal(
        steps, jnp.exp(-2.0 * steps), jnp.zeros(5), eqx.filter(model, eqx.is_array), 4
    )
    return mj.Diagnosis(
        "DiagonalLinearRNN", jnp.asarray(4.0), jnp.asarray(1.0), 3, signal,
        jnp.exp(-1.0 * steps), jnp.asarray(4.6), "plateau", "the signal is faint", (), None,
    )  # fmt: skip


def test_reports_in_words_are_kept_too():
    found = diagnosis()
    assert str(found).startswith("DiagonalLinearRNN, 4 trained weights, at lag 4")
    assert "Verdict: PLATEAU" in found._repr_html_() and found._repr_html_().startswith("<pre>")
    seen = []
    jax.jit(lambda value: (seen.append(str(value)), value.lag)[1])(found)
    jax.vmap(lambda value: (seen.append(str(value)), value.lag)[1])(
        jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), found)
    )
    seen.append(str(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), found)))
    for text in seen:
        assert text.startswith("Diagnosis\n") and rows(text)["verdict"] == "plateau"
    assert rows(seen[0])["lag"] == "float64[], traced"
    assert rows(seen[2])["lag"].split() == ["4", "4"]


def test_fields_without_content_and_functions_are_left_out():
    @readable()
    @dataclasses.dataclass
    class Some:
        nothing: None = None
        run: Any = print
        names: tuple[str, ...] = ("a", "b")
        parts: tuple[Any, ...] = (1, 2)
        flag: bool = True

    assert rows(str(Some())) == {"names": "a, b", "parts": "2 of int", "flag": "True"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1 / 3, "0.3333333"),
        (np.float32(2), "2"),
        (float("inf"), "inf"),
        (np.arange(3), "          0          1          2"),
        (np.array([True, False]), "       True      False"),
        (np.zeros((2, 3)), "shape (2, 3), from 0 to 0"),
        (np.array([[1.0, np.nan], [np.inf, 2.0]]), "shape (2, 2), from 1 to 2, 2 not finite"),
        (np.full((1, 2), np.nan), "shape (1, 2), 2 not finite"),
        (np.eye(2, dtype=bool), "shape (2, 2), 2 of 4 True"),
        (np.zeros((0, 2)), "none, of shape (0, 2)"),
        (1 + 2j, "1+2j"),
        (jnp.asarray([[1j]]), "shape (1, 1), complex"),
        ((), "none"),
    ],
)
def test_values_in_a_line(value, text):
    assert describe(value) == text


def test_keys_are_written_by_their_kind():
    assert "key" in describe(jax.random.key(0))


def test_standard_errors_are_a_table():
    times = np.linspace(0, 4, 40)
    noise = np.random.default_rng(0).normal(size=40)
    kernel = mj.SampledKernel(times, np.exp(-times) + 1e-3 * noise)
    statistics = mj.best_exponential_sum(kernel, 1).statistics
    assert statistics is not None
    lines = str(statistics).splitlines()
    assert lines[0].split() == ["parameter", "estimate", "std.", "error"]
    name, estimate, error = lines[3].split()
    assert name == "rates"
    assert float(estimate) == pytest.approx(float(statistics.estimates[1]), rel=1e-9)
    wanted = float(statistics.standard_errors["rates"][0])
    assert float(error) == pytest.approx(wanted, rel=1e-2)
