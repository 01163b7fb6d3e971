"""Reports: what the page says is what the dataset holds, and it needs nothing but itself."""

import base64
import gzip
import html
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import memjax as mj
from memjax import report
from memjax.cli import main
from memjax.plateaus import OUTCOMES
from memjax.report import _contents, _curves

SPEC = mj.PlateauSweep(
    memories=(6.0, 8.0, 10.0, 12.0), widths=(2, 4), seeds=(0, 1), curve_points=9, curve_stop=1e4
)


@pytest.fixture(scope="module")
def dataset():
    return SPEC.run(progress=False)


@pytest.fixture(scope="module")
def page(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert mj.write_report(dataset, path) == path
    return path.read_text("utf-8")


class _Page(HTMLParser):
    """The text, the cells of tables and the addresses of a page; scripts by their `id`."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.said, self.cells, self.scripts = [], [], [], {}
        self._within = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.addresses += [known[name] for name in ("src", "href", "action") if name in known]
        if tag not in ("meta", "link", "br"):
            self._within.append((tag, known.get("id")))

    def handle_endtag(self, tag):
        while self._within and self._within.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tag, name = self._within[-1] if self._within else ("", None)
        if tag == "script" and name:
            self.scripts[name] = data
        elif tag not in ("script", "style"):
            self.said.append(data)
            if tag in ("td", "th"):
                self.cells.append(data)


def test_the_page_holds_all_that_it_needs(page):
    found = _Page(page)
    assert found.addresses == ["data:,"]  # the icon, which a browser asks for otherwise
    assert re.search(r"@import|url\(\s*['\"]?http", page) is None
    assert "Bokeh" in page and 'http-equiv="refresh"' not in page


def test_the_table_of_fits_is_that_of_the_library(page, dataset):
    fit = mj.fit_scaling_law(dataset)
    cells = _Page(page).cells
    for width in SPEC.widths:
        law = fit.sel(width=width, correction="none").squeeze()
        ends = (float(law[name]) for name in ("slope", "slope_low", "slope_high"))
        assert "{:.3f} [{:.3f}, {:.3f}]".format(*ends) in cells
    assert cells.count("8 exited") == 2


def test_the_page_says_where_numbers_come_from(page, dataset):
    found = _Page(page)
    assert {"version jax", dataset.attrs["version_jax"], "device"} <= set(found.cells)
    assert "6, 8, 10, 12" in found.cells  # the memories
    assert any('start = "on-plateau"' in text for text in found.said)


def read_curves(page):
    """The curves as a browser reads them."""
    scripts = _Page(page).scripts
    numbers = [
        np.frombuffer(base64.b64decode(scripts[f"curve-{name}"]))
        for name in ("times", "low", "high")
    ]
    return unpack(_curves.Curves(*numbers, scripts["curve-data"], 1))


def unpack(curves):
    halves = np.frombuffer(gzip.decompress(base64.b64decode(curves.data)), np.uint8)
    first, second = halves.astype(int).reshape(2, len(curves.low), len(curves.times))
    codes = np.cumsum(first + 256 * second, axis=1) % 65536
    losses = curves.low[:, None] + codes / 65534 * (curves.high - curves.low)[:, None]
    return curves.times, np.where(codes == 65535, np.nan, losses)


def test_the_curves_of_the_page_are_those_of_the_dataset(page, dataset):
    times, losses = read_curves(page)
    dims = dataset["time"].dims
    own = dataset["curve_loss"].transpose(*dims, "training_time").values.reshape(losses.shape)
    np.testing.assert_array_equal(times, dataset["training_time"])
    np.testing.assert_allclose(losses, own, rtol=2e-5)


@given(
    arrays(
        float,
        st.tuples(st.integers(1, 4), st.integers(1, 40)),
        elements=st.floats(-1e30, 1e30) | st.just(np.nan) | st.just(np.inf),
    )
)
@settings(max_examples=100, deadline=None)
def test_packed_curves_are_within_a_step_of_their_range(losses):
    curves = _curves.pack_curves(np.arange(losses.shape[1]) + 1.0, losses)
    _, found = unpack(curves)
    known = np.isfinite(losses)
    np.testing.assert_array_equal(np.isfinite(found), known)
    step = (curves.high - curves.low)[:, None] / 65534
    off = np.where(known, np.abs(found - np.where(known, losses, 0)), 0)
    assert np.all(off <= 0.51 * step + 1e-12 * np.abs(np.where(known, losses, 0)))


def test_curves_that_are_too_many_have_fewer_times():
    noise = np.random.default_rng(0).random((50, 64))
    times = np.arange(1.0, 65.0)
    curves = _curves.pack_curves(times, noise, budget=4000)
    assert len(curves.data) <= 4000 and curves.every > 1
    found_times, found = unpack(curves)
    np.testing.assert_array_equal(found_times, times[:: curves.every])
    np.testing.assert_allclose(found, noise[:, :: curves.every], atol=1e-5)


def test_of_many_runs_some_are_drawn_and_all_are_fitted(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(_contents, "_MOST_RUNS", 5)
    found = _contents.collect(dataset)
    assert found.x.size == 5 and found.finished == found.total == 16
    text = mj.write_report(dataset, tmp_path / "some.html").read_text("utf-8")
    assert "5 of 16 finished runs are drawn" in text
    assert _Page(text).cells.count("8 exited") == 2


def test_runs_are_told_as_they_are(dataset):
    found = _contents.collect(dataset)
    for name, words in (("time", "time"), ("loss", "loss at the end"), ("num_steps", "steps")):
        np.testing.assert_array_equal(found.measured[words], dataset[name].values.ravel())
    by_name = {axis.name: axis for axis in found.axes}
    assert set(by_name) == {"memory", "width", "seed", "delta", "reparametrisation"}
    for axis, dim in zip(found.axes, dataset["time"].dims, strict=True):
        values = dataset["memory" if dim == "omega" else dim]
        expected = values.broadcast_like(dataset["time"]).transpose(*dataset["time"].dims)
        np.testing.assert_array_equal(np.asarray(axis.values)[axis.places], expected.values.ravel())
    np.testing.assert_array_equal(
        found.x, np.asarray(by_name["memory"].values)[by_name["memory"].places]
    )
    assert found.hue == "width" and found.exited.all()


def test_other_outcomes_are_drawn_where_they_stopped(dataset, tmp_path):
    codes = dataset["result"].copy()
    codes[0, 0, 0] = OUTCOMES.index("unresolved")
    times = dataset["time"].where(codes == OUTCOMES.index("exited"))
    changed = dataset.assign(result=codes, time=times)
    found = _contents.collect(changed)
    assert (found.outcomes == "unresolved").sum() == 1 and (~found.exited).sum() == 1
    text = mj.write_report(changed, tmp_path / "x.html").read_text("utf-8")
    assert "7 exited, 1 unresolved" in text and "unresolved (at the time reached)" in text


@pytest.mark.thorough
def test_a_sweep_without_curves_seeds_or_a_bound(tmp_path):
    def build(delay, rate):
        target = mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(omega=1 / delay, width=0.5)
        start = mj.on_plateau(target, rate)
        return mj.GradientFlow(mj.WhiteNoiseLoss(target)), start, mj.RelativeLossDrop(0.02)

    swept = mj.sweep(build, {"delay": [6.0, 8.0, 10.0, 12.0], "rate": [0.5, 0.6]}, progress=False)
    with pytest.raises(ValueError, match="`axis` must be given"):
        mj.write_report(swept, tmp_path / "x.html")
    assert not list(tmp_path.iterdir())
    text = mj.write_report(swept, tmp_path / "x.html", axis="delay").read_text("utf-8")
    found = _Page(text)
    assert "curve-data" not in found.scripts
    assert "Law: log(time) = slope * delay + constant" in found.said


def test_names_are_text_and_no_markup(dataset, tmp_path):
    bad = "</script><script>window.bad = 1</script><b>"
    changed = dataset.assign_coords(reparametrisation=[bad]).assign_attrs(device=bad)
    two = xr.concat([changed, dataset], "reparametrisation", combine_attrs="override")
    text = mj.write_report(two, tmp_path / "x.html").read_text("utf-8")
    assert bad not in text and "<script>window.bad" not in text
    assert html.escape(bad) in text


def test_of_many_colours_the_legend_names_some(dataset, tmp_path):
    many = xr.concat(
        [dataset.isel(width=[0]).assign_coords(width=[2 + k]) for k in range(40)],
        "width",
        combine_attrs="override",
    )
    text = mj.write_report(many, tmp_path / "x.html").read_text("utf-8")
    named = {int(value) for value in re.findall(r'"width = (\d+)"', text)}
    assert len(named) == 12 and {2, 41} <= named


# --- Sweeps that are not finished ---------------------------------------------------------------


@pytest.fixture
def unfinished(tmp_path):
    path = tmp_path / "store"
    SPEC.run(store=path, shard=(0, 2), block_size=4, progress=False)
    return path


def test_a_sweep_that_is_not_finished_is_shown_as_far_as_it_is(unfinished, tmp_path):
    done = mj.sweep_status(unfinished).runs_done
    assert 0 < done < 16
    path = mj.write_report(unfinished, tmp_path / "x.html", refresh=2.5)
    text = path.read_text("utf-8")
    assert f"{done} of 16 runs are finished" in text
    assert '<meta http-equiv="refresh" content="2.5">' in text
    SPEC.run(store=unfinished, resume=True, block_size=4, progress=False)
    mj.write_report(unfinished, path, refresh=2.5, overwrite=True)
    text = path.read_text("utf-8")
    assert "All 16 runs are finished." in text and 'http-equiv="refresh"' not in text


def test_a_sweep_of_which_nothing_is_finished(unfinished, tmp_path):
    for chunk in (unfinished / "result").glob("c.*"):
        chunk.unlink()
    text = mj.write_report(unfinished, tmp_path / "x.html").read_text("utf-8")
    assert "No run is finished yet." in text and "0 of 16" in text


def test_damage_is_found_in_what_is_not_finished(unfinished, tmp_path):
    chunk = next((unfinished / "time").glob("c.*"))
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="cannot be read"):
        mj.write_report(unfinished, tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


# --- Wrong input ----------------------------------------------------------------------------------


def test_wrong_input_is_refused_and_nothing_is_written(dataset, tmp_path, monkeypatch):
    path = tmp_path / "x.html"
    wrong = [
        (lambda: mj.write_report(dataset, path, refresh=-1.0), "`refresh` must be positive"),
        (lambda: mj.write_report(dataset, path, axis="memories"), "`axis` must be an axis"),
        (lambda: mj.write_report(dataset.drop_vars("time"), path), "variable 'time'"),
        (lambda: mj.write_report(dataset.drop_vars("time_reached"), path), "'time_reached'"),
        (lambda: mj.write_report(tmp_path / "nothing", path), "does not exist"),
    ]
    for call, message in wrong:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            call()
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        mj.write_report(dataset, path)
    assert path.read_text() == "mine"
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(ImportError, match="pip install bokeh"):
        mj.write_report(dataset, path, overwrite=True)
    assert path.read_text() == "mine"


# --- The command ----------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_command_writes_into_the_folder_of_a_run(tmp_path, capsys):
    out = str(tmp_path / "run")
    words = ["--memories", "6", "8", "10", "--widths", "2", "--seeds", "0", "--quiet", "--out", out]
    # As many points as in the tests of the command line, which share what is compiled.
    words += ["--curve-points", "20"]
    assert main(["sweep", *words]) == 0
    assert main(["report", out]) == 0
    assert "written: " in capsys.readouterr().out
    text = (tmp_path / "run" / report.REPORT).read_text("utf-8")
    assert "All 3 runs are finished." in text
    assert main(["report", out]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["report", out, "--overwrite", "--follow", "--json"]) == 0
    assert report.REPORT in capsys.readouterr().out
    # The report is known to be memjax's: the run may be replaced.
    assert main(["sweep", *words, "--overwrite"]) == 0
    assert not (tmp_path / "run" / report.REPORT).exists()


def test_the_command_writes_beside_a_store(dataset, tmp_path):
    mj.save_dataset(dataset, tmp_path / "mine.zarr")
    assert main(["report", str(tmp_path / "mine.zarr")]) == 0
    assert (tmp_path / "mine.html").is_file()
    mj.load_dataset(tmp_path / "mine.zarr")  # is still what it was
    mj.save_dataset(dataset, tmp_path / "delta-0.5")
    assert main(["report", str(tmp_path / "delta-0.5")]) == 0
    assert (tmp_path / "delta-0.5.html").is_file()
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert main(["report", str(tmp_path / "mine.zarr"), "--interval", "0"]) == 2
