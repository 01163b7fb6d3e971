import time
from pathlib import Path

from .._checks import as_path, as_plain, as_positive, check_dataset, check_flag
from .._lazy import xr
from ..sweeps import check_output, load_as_far, replacing
from ._contents import collect
from ._figures import check_bokeh
from ._page import make_page

# The name of a report in the folder of a run of the command line.
REPORT = "report.html"
_SOURCE = "memjax.sweep"


def write_report(
    run: "xr.Dataset | str | Path",
    path: str | Path,
    *,
    axis: str | None = None,
    refresh: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a report of a sweep: one HTML file, which any browser shows without a network.

    It shows the plateau times with the fitted laws and the published bound, the values of a run
    under the pointer, its loss curve after a click (where the sweep recorded curves), filters for
    the axes, outcomes and precision, the table of fits, and where the numbers come from. The
    figures are made by Bokeh, whose script is in the file.

    Of more than 30,000 runs as many are drawn, evenly chosen; fits and tables are of all.

    **Arguments:**

    - `run`: a sweep, the store of one, or the folder of `memjax sweep`. A sweep that is not
        finished is shown as far as it is.
    - `path`: the file to write, `report.html` for example.
    - `axis`: the name of the axis, as in [`memjax.fit_scaling_law`][].
    - `refresh`: after how many seconds a browser loads the page anew, where the sweep is not
        finished; by default it does not.
    - `overwrite`: whether a file of that name may be replaced.

    **Returns:**

    The path.

    **Raises:**

    As [`memjax.load_dataset`][] and [`memjax.fit_scaling_law`][]; `FileExistsError` for a file that
    exists, `ImportError` where Bokeh is not installed.
    """
    check_flag("overwrite", overwrite)
    if refresh is not None:
        refresh = as_plain(as_positive, "refresh", refresh, "pass seconds")
    check_output(path, overwrite, folder=False)
    check_bokeh()
    if isinstance(run, xr.Dataset):
        check_dataset("run", run, dict.fromkeys(["time", "result", "time_reached"], ()), _SOURCE)
        name, dataset, status = "Sweep", run, None
    else:
        folder = as_path("run", run)
        name = folder.absolute().name
        dataset, status = load_as_far(folder)
    contents = collect(dataset, axis)
    finished = contents.finished == contents.total
    page = make_page(
        name,
        contents,
        [contents.table],
        dataset.attrs,
        status,
        time.strftime("%Y-%m-%d %H:%M:%S %z"),
        None if finished else refresh,
    )
    with replacing(path, overwrite, folder=False) as partial:
        partial.write_text(page, encoding="utf-8")
    return Path(path)
