"""Tables and records of the dataset of a sweep and of its fit."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._lazy import xr
from .._text import format_table
from ..plateaus import OUTCOMES


def list_records(fit: "xr.Dataset") -> list[Any]:
    return fit.to_dataframe().reset_index().to_dict("records")


def count_outcomes(dataset: "xr.Dataset") -> dict[str, int]:
    counts = np.bincount(dataset["result"].values.ravel(), minlength=len(OUTCOMES))
    return dict(zip(OUTCOMES, counts.tolist(), strict=True))


def _find_groups(dataset: "xr.Dataset", apart: Sequence[str]) -> list[dict[str, Any]]:
    dims = [str(dim) for dim in dataset["time"].dims if dim not in apart]
    indices = np.ndindex(*(dataset.sizes[dim] for dim in dims))
    return [
        {dim: dataset[dim].values[i] for dim, i in zip(dims, index, strict=True)}
        for index in indices
    ]


def _label_group(group: dict[str, Any], groups: list[dict[str, Any]]) -> str:
    """What tells a group from the others."""
    short = {"width": "m"}
    differing = [n for n in group if len({str(other[n]) for other in groups}) > 1]
    return ", ".join(f"{short.get(n, n)}={group[n]}" for n in differing or ["width"] if n in group)


def tabulate_times(dataset: "xr.Dataset") -> str:
    """Median plateau times: a row a memory, a column a group."""
    groups = _find_groups(dataset, ("omega", "seed"))
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
    return (
        f"Plateau time (median over seeds, units of training time)\n{format_table(header, rows)}\n"
    )


def tabulate_fit(fit: "xr.Dataset", dataset: "xr.Dataset") -> str:
    """Fitted exponents beside the published bound."""
    groups = _find_groups(dataset, ("omega", "seed"))
    rows = []
    for group in groups:
        law = fit.sel(group)
        counts = count_outcomes(dataset.sel(group))
        cells = []
        for correction in ("none", "omega^2"):
            one = law.sel(correction=correction)
            values = [float(one[f"slope{end}"]) for end in ("", "_low", "_high")]
            finite = np.isfinite(values[0])
            cells.append("{:.3f} [{:.3f}, {:.3f}]".format(*values) if finite else "too few")
        rate = float(law["decay_rate"]) if "decay_rate" in law else np.nan
        mean = float(dataset.sel(group)["decay_rate"].mean()) if "decay_rate" in dataset else np.nan
        low, high = float(law["memory_low"]), float(law["memory_high"])
        others = [f"{n} {name.replace('_', ' ')}" for name, n in counts.items() if n]
        rows.append(
            [
                _label_group(group, groups),
                f"{low:g}..{high:g}",
                *cells,
                f"{rate:.3f}",
                f"{2 * mean:.3f}",
            ]
            + [", ".join(others)]
        )
    level = f"{100 * fit.attrs['confidence']:g} %"
    header = [
        "group", "1/omega", f"slope [{level}]", "with omega^2", "bound c0", "2 mean c0", "runs",
    ]  # fmt: skip
    return (
        f"Law: log(time) = slope / omega + constant\n{format_table(header, rows)}\n\n"
        "The published bound omega^2 exp(c0/omega) makes the slope at least c0, the smallest rate\n"
        "in play, as omega -> 0. It is not attained: for one silent mode (m one above the number\n"
        "of target exponentials) the slope tends to 2 c0, from below in the plain fit. Several\n"
        "silent modes act together and leave earlier; for them no such limit is known.\n"
    )
