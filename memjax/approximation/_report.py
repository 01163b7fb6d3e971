"""What an approximation says, in numbers and in plain words."""

import math
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Real

from .._checks import as_plain, as_share
from .._text import format_table, readable
from .._typing import ArrayLike, ScalarLike
from ..models import ComplexDiagonalRNN
from ..targets import AbstractKernel, SampledKernel
from ._best import best_exponential_sum
from ._dataset import between_samples
from ._neurons import neurons_needed, NeuronsNeeded
from ._sum import BestExponentialSum, Norm, Samples

# Orders that show how the error falls.
_ALSO = (1, 2, 4, 8, 16)
# How columns of standard errors and of the ends of intervals are named.
_SPREADS = {"standard_errors": "error", "low": "low", "high": "high"}


@readable()
class Approximation(eqx.Module):
    """How many neurons a response needs and with which weights, from [`memjax.approximate`][].

    `print` it for a report in plain words.

    **Attributes:**

    - `kernel`: the response.
    - `best`: the sum that is worth showing, a [`memjax.BestExponentialSum`][]: that which reaches
        the error, or if none does and noise or the straight lines between samples stand in the
        way, the smallest that is down to them.
    - `needed`: the [`memjax.NeuronsNeeded`][], if an error to reach was given.
    - `noise_from`: from which number of neurons on the residual looks like noise, or `None`.
    - `confidence`: the level of the confidence intervals.
    """

    kernel: AbstractKernel
    best: BestExponentialSum
    needed: NeuronsNeeded | None
    noise_from: int | None = eqx.field(static=True)
    confidence: float = eqx.field(static=True)

    @property
    def reached(self) -> bool:
        """Whether the error that was asked for is reached."""
        return self.needed is None or bool(self.needed.reached)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Where the answer stops being about the response, each in a sentence."""
        return tuple(_list_warnings(self))

    def __str__(self) -> str:
        return _write_report(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain numbers, lists and words, for JSON."""
        best, needed = self.best, self.needed
        record: dict[str, Any] = {"samples": best.samples, "norm": best.norm}
        if needed is None:
            record |= {"neurons": best.order}
        else:
            record |= {
                "neurons": int(needed.neurons),
                "lower_bound": int(needed.lower_bound),
                "reached": bool(needed.reached),
                "target_error": float(needed.error),
            }
        return record | {
            "noise_from": self.noise_from,
            "best": _describe_sum(self),
            "errors": [
                {"neurons": s.order, "error": float(s.error), "lower_bound": float(s.lower_bound)}
                for s in (() if needed is None else needed.sums)
            ],
        }

    def columns(self) -> dict[str, list[float]]:
        """The weights of the sum as a table, from the slowest rate on, with standard errors and
        the ends of confidence intervals if there are some: an entry a mode, and a last one of rate
        0 for an offset."""
        best = _describe_sum(self)
        columns = {name: list(values) for name, values in best["weights"].items()}
        first = "amplitude" if "amplitude" in columns else "cosine"
        constant = dict.fromkeys(columns, 0.0) | {first: best["offset"]}
        for label, ending in _SPREADS.items():
            for name, values in best.get(label, {}).items():
                if name == "offset":
                    constant[f"{first}_{ending}"] = values
                else:
                    columns[f"{name}_{ending}"] = list(values)
        if best["offset"] != 0:
            for name, values in columns.items():
                values.append(constant.get(name, math.nan))
        return columns


def approximate(
    kernel: AbstractKernel,
    error: Real[ScalarLike, ""] | None = None,
    *,
    neurons: int | None = None,
    relative: bool = False,
    max_neurons: int = 32,
    norm: Norm = "L2",
    min_rate: Real[ScalarLike, ""] = 0.0,
    complex: bool = False,
    horizon: Real[ScalarLike, ""] | None = None,
    samples: Samples = "points",
    weights: Real[ArrayLike, " samples"] | None = None,
    absolute_weights: bool = False,
    offset: bool = False,
    confidence: float = 0.95,
    progress: bool = False,
) -> Approximation:
    """Say how many neurons a response needs, with which weights, and what stands in the way.

    [`memjax.neurons_needed`][] for an error to reach, or [`memjax.best_exponential_sum`][] for a
    number of neurons, read as one reads a measured response: where noise begins, where the
    straight lines between samples bound the error, and which weights are of no use to training.

    !!! Example

        ```python
        kernel = mj.SampledKernel.from_csv("response.csv")
        found = mj.approximate(kernel, 1e-3, relative=True)
        print(found)
        found.best.model
        ```

    **Arguments:**

    - `error`: The error to reach, as in [`memjax.neurons_needed`][]. One of `error` and `neurons`
        is given.
    - `neurons`: The number of neurons to fit.
    - `relative`, `max_neurons`: as in [`memjax.neurons_needed`][].
    - `confidence`: The level of the confidence intervals.
    - `kernel`, `norm`, `min_rate`, `complex`, `horizon`, `samples`, `weights`,
        `absolute_weights`, `offset`, `progress`: as in [`memjax.best_exponential_sum`][].

    **Returns:**

    A [`memjax.Approximation`][].

    **Raises:** as [`memjax.neurons_needed`][], and `ValueError` if both or none of `error` and
    `neurons` are given.
    """
    if (error is None) == (neurons is None):
        got = "none" if error is None else "both"
        raise ValueError(f"`error` or `neurons` must be given, got {got}; pass one of them.")
    confidence = as_plain(as_share, "confidence", confidence)
    options = {
        "norm": norm,
        "min_rate": min_rate,
        "complex": complex,
        "horizon": horizon,
        "samples": samples,
        "weights": weights,
        "absolute_weights": absolute_weights,
        "offset": offset,
        "progress": progress,
    }
    if neurons is not None:
        best = best_exponential_sum(kernel, neurons, **options)
        noise_from = neurons if bool(best.noise_limited) else None
        return Approximation(kernel, best, None, noise_from, confidence)
    found = neurons_needed(
        kernel,
        error,  # pyright: ignore[reportArgumentType]
        relative=relative,
        max_neurons=max_neurons,
        also=_ALSO,
        **options,
    )
    best, limited = found.best, bool(found.best.noise_limited)
    # Sums that are too small show how the error falls, and where it becomes noise.
    smaller = [one for one in found.sums if one.order < best.order]
    noisy = [one for one in smaller if limited and bool(one.noise_limited)]
    # More neurons would only follow the noise, or the straight lines between the samples.
    done = [one for one in smaller if one in noisy or _is_limited_by_lines(kernel, one)]
    noise_from = noisy[0].order if noisy else best.order if limited else None
    if done and not bool(found.reached):
        best = done[0]
    return Approximation(kernel, best, found, noise_from, confidence)


def _measure_between(kernel: AbstractKernel, best: BestExponentialSum) -> float | None:
    """How far sums bend between samples that are joined by straight lines."""
    if best.samples != "linear":
        return None
    assert isinstance(kernel, SampledKernel)
    return between_samples(kernel, best)


def _is_limited_by_lines(kernel: AbstractKernel, best: BestExponentialSum) -> bool:
    """Whether most of the error is that of straight lines between samples."""
    between = _measure_between(kernel, best)
    return between is not None and between > float(best.error) / 2


def _describe_sum(report: Approximation) -> dict[str, Any]:
    """What there is to say of a sum; its weights from the slowest rate on."""
    best, statistics = report.best, report.best.statistics
    model, order = best.model, np.argsort(np.asarray(best.model.rates), kind="stable")
    names = {"rate": "rates", "frequency": "frequencies", "cosine": "cosine", "sine": "sine"}
    if not isinstance(model, ComplexDiagonalRNN):
        names = {"rate": "rates", "amplitude": "amplitudes"}
    sort = lambda values: np.asarray(values)[order].tolist()
    found: dict[str, Any] = {
        "neurons": best.order,
        "error": float(best.error),
        "relative_error": float(best.relative_error),
        "uncertainty": float(best.uncertainty),
        "between_samples": _measure_between(report.kernel, best),
        "lower_bound": float(best.lower_bound),
        "active": int(best.active),
        "resolved": bool(best.resolved),
        "confluent": bool(best.confluent),
        "noise_limited": bool(best.noise_limited),
        "weights": {name: sort(getattr(model, part)) for name, part in names.items()},
        "offset": float(best.offset),
    }
    if statistics is None:
        return found
    found |= {
        "residual_deviation": float(statistics.residual_deviation),
        "degrees_of_freedom": int(statistics.degrees_of_freedom),
        "confidence": report.confidence,
    }
    intervals = statistics.intervals(report.confidence)
    low, high = ({name: ends[k] for name, ends in intervals.items()} for k in (0, 1))
    for label, values in zip(_SPREADS, (statistics.standard_errors, low, high), strict=True):
        found[label] = {name: sort(values[part]) for name, part in names.items()}
        if "offset" in values:
            found[label]["offset"] = float(values["offset"])
    return found


def _write_report(report: Approximation) -> str:
    """The answer, errors against the number of neurons, and the weights."""
    record = report.to_dict()
    best, found = record["best"], []
    if "reached" in record:
        goal = f"the {record['norm']} error {record['target_error']:.4g}"
        most = record["errors"][-1]["neurons"]
        answer = f"no number of neurons up to {most} reached {goal}"
        if record["reached"]:
            answer = f"{record['neurons']} neurons reach {goal}"
        found.append(f"{answer}; fewer than {record['lower_bound']} certainly cannot.\n")
        rows = [
            [str(row["neurons"]), f"{row['error']:.4g}", f"{row['lower_bound']:.4g}"]
            for row in record["errors"]
        ]
        found.append(f"{format_table(['neurons', 'error', 'no sum below'], rows)}\n")
    found.append(
        f"Best sum of {best['neurons']}: {record['norm']} error {best['error']:.4g} "
        f"({best['relative_error']:.3g} of the norm), uncertain by {best['uncertainty']:.2g}; "
        f"no sum of as many falls below {best['lower_bound']:.4g}."
    )
    if record["samples"] == "linear":
        found.append("The response was taken for straight lines from sample to sample.")
    elif "standard_errors" in best:
        found.append(
            "Samples were taken as points, by least squares: residual standard deviation "
            f"{best['residual_deviation']:.6g} with {best['degrees_of_freedom']} degrees of "
            "freedom."
        )
    elif record["samples"] == "points":
        found.append("Samples were taken as points: errors count at the samples alone.")
    return "\n".join([*found, *_write_weights(best, report.confidence)])


def _write_weights(best: dict[str, Any], confidence: float) -> list[str]:
    header, columns, spread = [], [], "standard_errors" in best
    level = f"{100 * confidence:g} %"
    for name, values in best["weights"].items():
        header.append(name)
        columns.append([f"{value:.10g}" for value in values])
        if spread:
            header += ["std. error", level]
            columns.append([f"{value:.3g}" for value in best["standard_errors"][name]])
            ends = zip(best["low"][name], best["high"][name], strict=True)
            columns.append([f"[{low:.6g}, {high:.6g}]" for low, high in ends])
    lines = [format_table(header, list(zip(*columns, strict=True)))]
    if best["offset"] != 0:
        text = f"offset {best['offset']:.10g}"
        if spread:
            error, low, high = (best[label]["offset"] for label in _SPREADS)
            text += f", std. error {error:.3g}, {level} [{low:.6g}, {high:.6g}]"
        lines.append(text)
    return lines


def _list_warnings(report: Approximation) -> list[str]:
    kernel, best, found = report.kernel, report.best, []
    lines = kernel if best.samples == "linear" and isinstance(kernel, SampledKernel) else None
    if lines is not None and lines.times[0] > 0:
        found.append(
            f"the first sample is at time {float(lines.times[0]):g}, and before it the response "
            "counts as 0; take off that time (`--origin` on the command line) if it begins "
            "there."
        )
    if report.noise_from is not None:
        found.append(
            f"from {report.noise_from} neurons on the residual changes sign as often as noise "
            "does; more would fit noise."
        )
    if lines is not None and _is_limited_by_lines(lines, best):
        found.append(
            "much of the error lies between the samples, where the response is taken for straight "
            f"lines and the sum bends by {between_samples(lines, best):.2g}; sample more densely, "
            "or take the samples as points."
        )
    if bool(best.confluent):
        found.append(
            "terms cancel to a hundred-thousandth of their size or less; weights this large are "
            "of no use to training, and complex rates or fewer neurons may do better."
        )
    errors = () if best.statistics is None else best.statistics.standard_errors["rates"]
    if np.any(np.isinf(errors)):
        found.append(
            "the samples do not determine all rates and amplitudes; fit fewer neurons for standard "
            "errors that are finite."
        )
    if not bool(best.resolved):
        found.append("the error is within its own uncertainty, and so an upper estimate.")
    if int(best.active):
        found.append(f"{int(best.active)} rates lie on the stability margin, and would be slower.")
    return found
