"""A report as one page of HTML that needs nothing else."""

import base64
import html
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._lazy import bokeh
from ..sweeps import SweepStatus
from ._contents import Contents
from ._curves import Curves
from ._figures import draw, name_value
from ._tables import Table


def make_page(
    name: str,
    contents: Contents,
    tables: Sequence[Table],
    attributes: Mapping[str, Any],
    status: SweepStatus | None,
    written: str,
    refresh: float | None,
) -> str:
    """The page of a report.

    **Arguments:**

    - `name`: what it is a report of.
    - `contents`: what its figures show.
    - `tables`: its tables.
    - `attributes`: those of the dataset.
    - `status`: how far the sweep is, if it has a store.
    - `written`: when the page was made, in words.
    - `refresh`: after how many seconds a browser loads it anew, if at all.
    """
    parts = [f"<h1>{_plain(name)}</h1>", *_tell_state(contents, status)]
    if contents.x.size:
        script, division = bokeh.embed.components(draw(contents))
        library = bokeh.resources.Resources(
            mode="inline", components=["bokeh", "bokeh-widgets"]
        ).render_js()
        if contents.x.size < contents.finished:
            parts.append(
                f"<p>{contents.x.size} of {contents.finished} finished runs are drawn, evenly "
                "chosen; tables and fits are of all.</p>"
            )
        parts += [
            "<h2>Plateau time</h2>",
            "<p>A point is a run, a line the law that was fitted to a group of runs. Hover over "
            "them for their values. Click a point for all that is known of a run"
            f"{', and its loss curve' if contents.curves is not None else ''}; with Shift, of "
            "several.</p>",
            division,
        ]
        if contents.curves is not None:
            parts += _embed_curves(contents.curves)
        # Last, once all that it looks for is there.
        parts += _write_tables(tables)
        script = f"{library}\n{script}"
    else:
        script = ""
        parts.append("<p>No run is finished yet.</p>")
    parts += _write_provenance(contents, attributes, written)
    again = f'<meta http-equiv="refresh" content="{refresh:g}">' if refresh is not None else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Browsers ask for an icon otherwise.
        '<link rel="icon" href="data:,">\n'
        f"{again}<title>{_plain(name)}: memjax report</title>\n<style>{_read('report.css')}</style>"
        f"\n</head>\n<body>\n{chr(10).join(parts)}\n{script}\n</body>\n</html>\n"
    )


def _plain(text: Any) -> str:
    return html.escape(str(text))


def _read(name: str) -> str:
    return (importlib.resources.files("memjax.report") / name).read_text(encoding="utf-8")


def _tell_state(contents: Contents, status: SweepStatus | None) -> list[str]:
    done, total = contents.finished, contents.total
    if done == total:
        return [f"<p>All {total} runs are finished.</p>"]
    parts = [
        f'<p class="warning">{done} of {total} runs are finished: fits and tables are of these.'
        f'</p><p><progress value="{done}" max="{total}"></progress></p>'
    ]
    if status is not None:
        parts.append(f"<pre>{_plain(status)}</pre>")
    return parts


def _embed_curves(curves: Curves) -> list[str]:
    numbers = {"times": curves.times, "low": curves.low, "high": curves.high}
    texts = {
        name: base64.b64encode(np.asarray(values, "<f8").tobytes()).decode()
        for name, values in numbers.items()
    }
    texts["data"] = curves.data
    parts = [
        f'<script type="text/plain" id="curve-{name}">{text}</script>'
        for name, text in texts.items()
    ]
    parts.append(f"<script>{_read('curves.js')}</script>")
    left = "" if curves.every == 1 else f" Of the recorded times every {curves.every}th is here."
    parts.append(
        "<p>Losses of curves are rounded to a 65,534th of the range of their run; the times and "
        f"losses in tables are not.{left}</p>"
    )
    return parts


def _write_tables(tables: Sequence[Table]) -> list[str]:
    parts = []
    for table in tables:
        head = "".join(f"<th>{_plain(cell)}</th>" for cell in table.header)
        rows = "".join(
            f"<tr>{''.join(f'<td>{_plain(cell)}</td>' for cell in row)}</tr>" for row in table.rows
        )
        parts.append(
            f'<h2>{_plain(table.title)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )
        if table.note:
            parts.append(f"<p>{_plain(table.note)}</p>")
    return parts


def _write_provenance(contents: Contents, attributes: Mapping[str, Any], written: str) -> list[str]:
    axes = [(axis.name, _describe(axis.values)) for axis in contents.axes]
    rows = "".join(
        f"<tr><td>{_plain(name.replace('_', ' '))}</td><td>{_plain(value)}</td></tr>"
        for name, value in [("page written", written), *axes, *attributes.items()]
        if name != "specification"
    )
    parts = [f"<h2>Where it comes from</h2><table class=plain><tbody>{rows}</tbody></table>"]
    if "specification" in attributes:
        text = _plain(attributes["specification"])
        parts.append(f"<h2>Specification</h2><pre>{text}</pre>")
    return parts


def _describe(values: Sequence[Any]) -> str:
    """The values of an axis in a line."""
    words = [name_value(value) for value in values]
    if len(words) <= 6:
        return ", ".join(words)
    return f"{len(words)} values: {', '.join(words[:3])}, ..., {words[-1]}"
