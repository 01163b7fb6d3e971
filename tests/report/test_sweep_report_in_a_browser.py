"""Reports in a browser without a network: `pytest -m browser`, after `.ci/chromium`."""

import numpy as np
import pytest

import memjax as mj

pytestmark = pytest.mark.browser

SPEC = mj.PlateauSweep(
    memories=(6.0, 8.0, 10.0, 12.0), widths=(2, 4), seeds=(0, 1), curve_points=41, curve_stop=1e6
)
# Where a run is on the screen, by the scales of the figure.
PLACE = """(run) => {
  const views = []
  const walk = (view) => {
    views.push(view)
    for (const child of view.child_views ?? []) walk(child)
  }
  for (const view of Bokeh.index.roots ?? Object.values(Bokeh.index)) walk(view)
  const plot = views.find((view) => view.frame !== undefined)
  const data = plot.model.renderers[0].data_source.data
  const box = plot.el.getBoundingClientRect()
  return [box.left + plot.frame.x_scale.compute(data.x[run]),
          box.top + plot.frame.y_scale.compute(data.y[run])]
}"""
READY = "window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle"
SOURCES = """() => [...Bokeh.documents[0]._all_models.values()]
  .filter((model) => model.type === "ColumnDataSource").map((model) => model.data)"""


@pytest.fixture(scope="module")
def dataset():
    return SPEC.run(progress=False)


@pytest.fixture
def opened(dataset, tmp_path):
    from browser import browser, watch

    path = mj.write_report(dataset, tmp_path / "report.html")
    with browser() as started:
        page = started.new_page(viewport={"width": 1150, "height": 1100})
        problems = watch(page)
        page.goto(path.as_uri())
        page.wait_for_function(READY)
        yield page
        assert problems == []


def test_a_click_shows_the_curve_of_a_run(opened, dataset):
    dims = dataset["time"].dims
    place = {"omega": 3, "width": 0, "seed": 1, "delta": 0, "reparametrisation": 0}
    run = int(np.ravel_multi_index([place[d] for d in dims], dataset["time"].shape))
    opened.mouse.click(*opened.evaluate(PLACE, run))
    opened.wait_for_function(
        f"({SOURCES})().some((data) => 'xs' in data && !('slope' in data) && data.xs.length > 0)"
    )
    cell = dataset.isel(place)
    curves = next(d for d in opened.evaluate(SOURCES) if "xs" in d and "slope" not in d)
    seen = np.isfinite(cell["curve_loss"].values)
    times = [*cell["training_time"].values[seen], float(cell["time_reached"])]
    losses = [*cell["curve_loss"].values[seen], float(cell["loss"])]
    # Runs of nearly the same time lie under the pointer as well.
    found = [
        k for k, xs in enumerate(curves["xs"])
        if len(xs) == len(times) and np.allclose(xs, times, rtol=1e-9)
    ]  # fmt: skip
    assert len(found) == 1
    np.testing.assert_allclose(curves["ys"][found[0]], losses, rtol=1e-4)
    told = opened.get_by_role("cell", name=f"{float(cell['time']):.6g}", exact=True)
    assert told.first.is_visible()


def test_choices_hide_runs_and_lines(opened):
    assert opened.get_by_text("16 of 16 runs are shown.").is_visible()
    opened.locator("select").nth(1).select_option(label="4")
    assert opened.get_by_text("8 of 16 runs are shown.").is_visible()
    opened.locator("select").nth(0).select_option(label=["6", "12"])
    assert opened.get_by_text("4 of 16 runs are shown.").is_visible()
    opened.get_by_text("Show all").click()
    assert opened.get_by_text("16 of 16 runs are shown.").is_visible()


def test_the_pointer_shows_the_values_of_a_run(opened, dataset):
    opened.mouse.move(*opened.evaluate(PLACE, 0))
    time = float(dataset["time"].values.ravel()[0])
    tip = opened.get_by_text(f"{time:.6g}")
    tip.first.wait_for()
    assert tip.first.is_visible()
