"""Tables of the dataset of a sweep and of its fit, for the command line and for reports."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .._lazy import xr
from ..plateaus import MEMORY, OUTCOMES


class Table(NamedTuple):
    """A table: what is above it, its header, its rows of text, and what is below."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""


def count_outcomes(dataset: "xr.Dataset") -> dict[str, int]:
    """How many runs ended in which way, by its name."""
    # Cells that are not finished have a code below these, and those that are missing none at all.
    result = dataset["result"].values
    return {name: int(np.sum(result == code)) for code, name in enumerate(OUTCOMES)}


def _find_groups(values: "xr.DataArray", apart: Sequence[str]) -> list[dict[str, Any]]:
    dims = [str(dim) for dim in values.dims if dim not in apart]
    indices = np.ndindex(*(values.sizes[dim] for dim in dims))
    return [
        {dim: values[dim].values[i] for dim, i in zip(dims, index, strict=True)}
        for index in indices
    ]


def _label_group(group: dict[str, Any], groups: list[dict[str, Any]]) -> str:
    """What tells a group from the others."""
    short = {"width": "m"}
    differing = [n for n in group if len({str(other[n]) for other in groups}) > 1]
    return ", ".join(f"{short.get(n, n)}={group[n]}" for n in differing or ["width"] if n in group)


def tabulate_times(dataset: "xr.Dataset") -> Table:
    """Median plateau times: a row a memory, a column a group."""
    groups = _find_groups(dataset["time"], ("omega", "seed"))
    rows = []
    for index in np.argsort(dataset["memory"].values):
        row = [f"{dataset['memory'].values[index]:g}"]
        for group in groups:
            cells = dataset.isel(omega=index).sel(group)
            times = np.atleast_1d(cells["time"].values)
            failed = np.isnan(times).sum()
            # A run that never exits counts as an infinite time; one without an answer does not.
            text = f"{np.nanmedian(times):.4g}" if failed < times.size else "-"
            row.append(text + (f" ({failed} unknown)" if failed else ""))
        rows.append(row)
    header = ["1/omega", *(_label_group(group, groups) for group in groups)]
    return Table("Plateau time (median over seeds, units of training time)", header, rows)


def tabulate_fit(fit: "xr.Dataset", dataset: "xr.Dataset") -> Table:
    """Fitted exponents, against the memory beside the published bound."""
    axis, level = fit.attrs["axis"], f"{100 * fit.attrs['confidence']:g} %"
    law = axis == MEMORY
    groups = _find_groups(fit["slope"], ("correction",))
    names = {"none": f"slope [{level}]", "omega^2": "with omega^2"}
    corrections = [name for name in names if name in fit["correction"]]
    bounded = law and "decay_rate" in dataset
    header = ["group", "1/omega" if law else axis, *(names[name] for name in corrections)]
    header += ["bound c0", "2 mean c0"] if bounded else []
    rows = []
    for group in groups:
        one, cells = fit.sel(group), dataset.sel(group)
        low, high = float(one[f"{axis}_low"]), float(one[f"{axis}_high"])
        row = [_label_group(group, groups), f"{low:g}..{high:g}"]
        for correction in corrections:
            ends = (one[f"slope{end}"].sel(correction=correction) for end in ("", "_low", "_high"))
            values = [float(value) for value in ends]
            finite = np.isfinite(values[0])
            row.append("{:.3f} [{:.3f}, {:.3f}]".format(*values) if finite else "too few")
        if bounded:
            mean = float(cells["decay_rate"].mean())
            row += [f"{float(one['decay_rate']):.3f}", f"{2 * mean:.3f}"]
        counts = count_outcomes(cells)
        others = [f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n]
        rows.append([*row, ", ".join(others)])
    header = [*header, "runs"]
    if not law:
        return Table(f"Law: log(time) = slope * {axis} + constant", header, rows)
    return Table(
        "Law: log(time) = slope / omega + constant",
        header,
        rows,
        "The published bound omega^2 exp(c0/omega) makes the slope at least c0, the smallest rate\n"
        "in play, as omega -> 0. It is not attained: for one silent mode (m one above the number\n"
        "of target exponentials) the slope tends to 2 c0, from below in the plain fit. Several\n"
        "silent modes act together and leave earlier; for them no such limit is known.",
    )
