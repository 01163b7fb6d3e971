"""What all figures share: axes of one's own, fonts, settings, panel letters, notebooks."""

import copy
import functools
import io
import pickle
import re
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from test_figures import sweep_like

import memjax as mj
from memjax import viz
from memjax.cli import main
from memjax.viz import look
from memjax.viz._style import DASHES, drawing, spread_marks


@functools.cache
def memories():
    ts = jnp.geomspace(0.1, 30, 20)
    kernels = {"fast": mj.ExponentialSum([1.0], [1.0]), "slow": mj.ExponentialSum([1.0], [0.2])}
    return {name: mj.memory_function(kernel, ts) for name, kernel in kernels.items()}


def perturbed():
    radius, width = np.geomspace(1e-3, 1, 6), np.array([2, 4])
    error = radius * width[:, None]
    error[1, -1] = np.inf
    dims = ("width", "radius")
    return xr.Dataset(
        {"error": (dims, error), "drawn": (dims, 0.5 * radius * np.ones((2, 1)))},
        {"width": width, "radius": radius},
    )


def approximation():
    times = np.linspace(0, 5, 20)
    kernel = ("time", np.exp(-times))
    return xr.Dataset({"kernel": kernel, "fit": kernel}, {"time": times})


def errors():
    m = np.array([2, 4, 6])
    error = (("kernel", "neurons"), np.exp(-m * np.array([[0.5], [0.9]])))
    return xr.Dataset({"error": error}, {"kernel": ["bump", "Airy"], "neurons": m})


def needed():
    neurons = (("omega", "error"), np.array([[9, 4, 2], [6, 0, 2]]))
    return xr.Dataset({"neurons": neurons}, {"omega": [0.5, 1.0], "error": [1e-3, 1e-2, 1e-1]})


def criterion():
    radius = np.geomspace(1e-3, 1, 6)
    growth = (("reparametrisation", "radius"), np.stack([radius, radius**2]))
    return xr.Dataset({"growth": growth}, {"reparametrisation": ["a", "b"], "radius": radius})


@functools.cache
def found():
    steps = np.arange(1, 4001)
    losses = 1 / (1 + (steps / 1000) ** 8) + 0.1 + 1e-3 * np.sin(7.0 * steps)
    return mj.find_plateaus(steps, losses)


@functools.cache
def plateau():
    target = mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(omega=0.1, width=0.5)
    flow = mj.GradientFlow(mj.WhiteNoiseLoss(target))
    model = mj.DiagonalLinearRNN([1.0, 0.0], [1.0, 0.6])
    times = jnp.geomspace(1e-2, 1e3, 30)
    exit, saveat = mj.RelativeLossDrop(0.02), diffrax.SaveAt(ts=times)
    return mj.measure_plateau(flow, model, exit, saveat=saveat)


# How many panels there are, and what is drawn.
DRAWN = {
    "plot_plateau_law": (1, sweep_like),
    "plot_loss_curves": (1, sweep_like),
    "plot_plateau": (1, plateau),
    "plot_log": (1, found),
    "plot_stability_criterion": (1, criterion),
    "plot_perturbation_errors": (1, perturbed),
    "plot_neurons_needed": (1, needed),
    "plot_memory_functions": (2, memories),
    "plot_approximation": (2, approximation),
    "plot_approximation_errors": (2, errors),
}
every = pytest.mark.parametrize("name", DRAWN)


def colours(lines):
    return [mpl.colors.to_hex(line.get_color()) for line in lines]


@every
def test_axes_of_ones_own_are_drawn_in(name):
    count, make = DRAWN[name]
    data, draw = make(), getattr(viz, name)
    mine = Figure()
    grid: Any = mine.subplots(1, count + 1)
    inner = grid[:count] if count > 1 else grid[0]
    before = dict(mpl.rcParams)
    assert draw(data, ax=inner) is mine
    assert dict(mpl.rcParams) == before
    for axes in grid[:count]:
        assert axes.has_data() and axes.get_ylabel()
    assert grid[:count][-1].get_xlabel() and not grid[count].has_data()
    # The letters of panels are the user's as well.
    assert not any(axes.get_title(loc="left").startswith("(") for axes in grid)
    # The same lines, in the same look, as in a figure of its own.
    own = draw(data)
    for ours, theirs in zip(own.axes, grid, strict=False):
        assert len(ours.lines) == len(theirs.lines)
        assert colours(ours.lines) == colours(theirs.lines)
    mine.savefig(io.BytesIO(), format="svg")


def test_axes_in_a_part_of_a_figure_give_the_whole_figure():
    mine = Figure()
    parts = mine.subfigures(1, 2)
    assert viz.plot_stability_criterion(criterion(), ax=parts[1].subplots()) is mine


@every
def test_axes_that_are_none_or_not_enough_are_refused(name):
    count, make = DRAWN[name]
    data, draw = make(), getattr(viz, name)
    grid = Figure().subplots(1, 3)
    for wrong in (3, "axes", Figure(), [grid[0], None] if count == 2 else [None]):
        with pytest.raises(TypeError, match="^`ax` must be .*axes of matplotlib, got"):
            draw(data, ax=wrong)
    with pytest.raises(ValueError, match=f"^`ax` must have as many axes .*, {count}, got 3; make"):
        draw(data, ax=grid)


# One mechanism for all figures: one of a panel and one of several.
@pytest.mark.parametrize("name", ["plot_plateau_law", "plot_memory_functions"])
def test_fonts_are_embedded_so_that_journals_take_them(name):
    figure = getattr(viz, name)(DRAWN[name][1]())
    before = dict(mpl.rcParams)
    files = {}
    for ending in ("pdf", "ps", "svg", "png"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending)
        files[ending] = buffer.getvalue()
    assert dict(mpl.rcParams) == before
    assert b"/Type3" not in files["pdf"] and b"/CIDFontType2" in files["pdf"]
    assert b"/FontType 42" in files["ps"] and b"/FontType 3 " not in files["ps"]
    assert b"<text" in files["svg"]
    # 300 dots to the inch, whatever the screen has.
    width = int.from_bytes(files["png"][16:20], "big")
    assert width == round(300 * figure.get_figwidth())


def test_what_a_user_sets_goes_first():
    with viz.style({"font.size": 12.0, "figure.figsize": (3.0, 2.0), "savefig.dpi": 100}):
        with viz.style({"lines.linewidth": 2.4}):
            figure = viz.plot_stability_criterion(criterion())
        plain = viz.plot_stability_criterion(criterion())
    axes = figure.axes[0]
    assert axes.xaxis.label.get_size() == 12
    assert figure.get_size_inches().tolist() == [3, 2]
    assert axes.lines[0].get_linewidth() == pytest.approx(
        2 * plain.axes[0].lines[0].get_linewidth()
    )
    buffer = io.BytesIO()
    figure.savefig(buffer)
    assert int.from_bytes(buffer.getvalue()[16:20], "big") == 300
    # What a figure is saved in counts too, and the end of the block is the end of it.
    with viz.style({"savefig.dpi": 50}):
        figure.savefig(buffer := io.BytesIO())
    assert int.from_bytes(buffer.getvalue()[16:20], "big") == 150
    assert viz.plot_stability_criterion(criterion()).axes[0].xaxis.label.get_size() == 9


def test_colours_markers_and_dashes_can_be_ones_own():
    cycle = mpl.rcsetup.cycler(color=["red", "blue"], marker=["*", "h"], linestyle=["-", ":"])
    with viz.style({"axes.prop_cycle": cycle}):
        lines = viz.plot_stability_criterion(criterion()).axes[0].lines
        mine = viz.plot_stability_criterion(criterion(), ax=Figure().subplots()).axes[0].lines
    for drawn in (lines, mine):
        assert [line.get_color() for line in drawn[:2]] == ["red", "blue"]
        assert [line.get_marker() for line in drawn[:2]] == ["*", "h"]


def test_all_settings_of_ones_own_can_be_taken():
    with mpl.rc_context({"axes.spines.top": True, "pdf.fonttype": 3}):
        with viz.style(mpl.rcParams):
            figure = viz.plot_stability_criterion(criterion())
    assert figure.axes[0].spines["top"].get_visible()
    assert figure.get_size_inches().tolist() == mpl.rcParams["figure.figsize"]
    figure.savefig(buffer := io.BytesIO(), format="pdf")
    assert b"/Type3" in buffer.getvalue()


def test_settings_that_matplotlib_does_not_know_are_refused():
    before = dict(mpl.rcParams)
    for settings, error, message in (
        (3, TypeError, "`settings` must be a mapping, got 3"),
        ({"font.sise": 3}, ValueError, "got 'font.sise'; did you mean 'font.size'"),
        ({"font.size": "large, please"}, ValueError, "`settings` must have values .* got .*size"),
    ):
        with pytest.raises(error, match=message), viz.style(settings):
            pass
    assert dict(mpl.rcParams) == before


def test_panels_have_letters_where_there_are_several():
    def titles(figure):
        return [axes.get_title(loc="left") for axes in figure.axes]

    assert titles(viz.plot_memory_functions(memories())) == ["(a)", "(b)"]
    assert titles(viz.plot_approximation_errors(errors())) == ["(a) bump", "(b) Airy"]
    assert titles(viz.plot_stability_criterion(criterion())) == [""]
    with drawing(9, 9) as figure:
        figure.subplots(4, 7)[0, 1].set_axis_off()
    letters = [title for title in titles(figure) if title]
    assert letters[:2] == ["(a)", "(b)"] and letters[25:] == ["(z)", "(aa)"]


def test_series_are_told_apart_without_colours():
    def seen(index):
        own = look(index)
        return own["marker"], own["mfc"] == "none", str(own["ls"])

    with drawing(1, 1):
        assert len({seen(index) for index in range(14)}) == 14
    assert len(set(map(str, DASHES))) == len(DASHES)


def test_marks_are_evenly_spaced_on_a_logarithmic_axis():
    assert spread_marks(np.arange(1, 1001), 4) == [0, 9, 99, 999]
    assert spread_marks([0.0, 1.0], 3)[-1] == 1


def test_figures_can_be_copied_and_sent_to_other_processes():
    figure = viz.plot_stability_criterion(criterion())
    for twin in (pickle.loads(pickle.dumps(figure)), copy.deepcopy(figure)):
        twin.savefig(buffer := io.BytesIO(), format="pdf")
        assert b"/CIDFontType2" in buffer.getvalue()


def test_notebooks_show_figures_without_pyplot():
    picture = viz.plot_stability_criterion(criterion())._repr_png_()
    assert picture.startswith(b"\x89PNG")


@pytest.mark.parametrize("make", [found, plateau, lambda: memories()["fast"]])
def test_notebooks_show_results_with_their_figure(make):
    text = make()._repr_html_()
    assert re.search(r'<img alt="figure of \w+".* src="data:image/png;base64,iVBOR', text)
    # What is written stands before it.
    assert text.index("<img") > 20


def test_what_cannot_be_drawn_is_shown_without_a_figure():
    result = plateau()
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), result)
    bare = mj.Plateau(**{**vars(result), "curve": None})
    for value in (batch, bare):
        assert "Plateau" in value._repr_html_() and "<img" not in value._repr_html_()


def test_a_plateau_without_a_curve_or_a_batch_is_refused():
    result = plateau()
    with pytest.raises(TypeError, match="`plateau` must be a measured plateau, got 3"):
        viz.plot_plateau(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`plateau` must have a curve, got none; .*saveat="):
        viz.plot_plateau(mj.Plateau(**{**vars(result), "curve": None}))
    with pytest.raises(ValueError, match="`plateau` must be a single one"):
        viz.plot_plateau(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), result))


def test_a_plateau_is_drawn_to_its_exit():
    result = plateau()
    axes = viz.plot_plateau(result).axes[0]
    curve, exit = axes.lines
    assert axes.get_xscale() == "log"
    assert curve.get_xdata()[-1] == exit.get_xdata()[0] == float(result.time)
    assert f"{float(result.time):.4g}" in axes.get_legend().get_texts()[1].get_text()


@pytest.mark.parametrize(
    "ending, start", [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_commands_write_figures_in_the_format_asked_for(ending, start, tmp_path, capsys):
    log = tmp_path / "log.csv"
    result = found()
    columns = np.column_stack([result.steps, result.losses])
    np.savetxt(log, columns, delimiter=",", header="step,loss", comments="")
    times = np.linspace(0, 5, 30)
    response = tmp_path / "response.csv"
    np.savetxt(response, np.column_stack([times, np.exp(-times)]), delimiter=",")
    commands = {
        "log": ["log", str(log)],
        "approximation": ["approximate", str(response), "--neurons", "1", "--quiet"],
    }
    for name, command in commands.items():
        out = tmp_path / f"{name}-out"
        assert main([*command, "--out", str(out), "--format", ending]) == 0
        assert f"{name}.{ending}" in capsys.readouterr().out
        assert (out / f"{name}.{ending}").read_bytes().startswith(start)
    assert main(["log", str(log), "--out", str(tmp_path / "new"), "--format", "docx"]) == 2
    assert not (tmp_path / "new").exists()
