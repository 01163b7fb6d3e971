"""What the published perturbation plots show, and what of it is found again."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .._lazy import xr
from ..memory import crossings
from ._base import listed, near, Verdict
from ._staged import radius_at
from ._w24_protocol import ACTIVATIONS, KERNELS, PARAMETRISATIONS

WIDTHS = (8, 16, 32, 64)


class Published(NamedTuple):
    """What a published plot shows at the widths of `WIDTHS`: the error without perturbation, the
    radius at which it is 10 % of the mean square of the target, and that at which it is all of
    it. Then the radius from which on 64 neurons are worse than 8, and the error there."""

    unperturbed: tuple[float, float, float, float]
    tenth: tuple[float, float, float, float]
    lost: tuple[float, float, float, float]
    crossing: tuple[float, float] | None


# Digitised from the figures of 16 July 2023 in the public repository radarFudan/Curse-of-memory.
PUBLISHED: Mapping[str, Published] = {
    "tanh vanilla, power law": Published(
        (0.301, 0.0748, 0.0361, 0.0174),
        (0.00598, 0.0131, 0.0139, 0.0190),
        (0.0135, 0.0267, 0.0290, 0.0384),
        (0.0773, 979.0),
    ),
    "tanh softplus, power law": Published(
        (0.206, 0.0643, 0.0163, 0.00563),
        (0.0173, 0.0453, 0.182, 0.125),
        (0.0740, 0.155, 0.408, 0.388),
        None,
    ),
    "hardtanh vanilla, power law": Published(
        (0.749, 0.0755, 0.0160, 0.00769),
        (0.00429, 0.0112, 0.0107, 0.0135),
        (0.0151, 0.0222, 0.0209, 0.0283),
        (0.0499, 259.0),
    ),
    "hardtanh softplus, power law": Published(
        (0.105, 0.0475, 0.0222, 0.0106),
        (0.0224, 0.0371, 0.0638, 0.183),
        (0.0714, 0.119, 0.283, 0.671),
        None,
    ),
    "linear vanilla, power law": Published(
        (0.0762, 0.0331, 0.00814, 0.00242),
        (0.00827, 0.0113, 0.00918, 0.0106),
        (0.0175, 0.0213, 0.0191, 0.0219),
        None,
    ),
    "linear softplus, power law": Published(
        (0.00419, 0.00155, 0.000706, 0.000231),
        (0.0473, 0.0492, 0.110, 0.126),
        (0.162, 0.120, 0.263, 0.132),
        (0.131, 9.92),
    ),
    "tanh diagonal, power law": Published(
        (0.322, 0.0574, 0.0264, 0.00507),
        (0.00559, 0.00914, 0.0115, 0.0110),
        (0.0152, 0.0212, 0.0272, 0.0244),
        (0.0593, 893.0),
    ),
    "hardtanh diagonal, exponential": Published(
        (0.0125, 0.00287, 9.64e-5, 5.36e-5),
        (0.00768, 0.00881, 0.0180, 0.0187),
        (0.0185, 0.0211, 0.0298, 0.0304),
        (0.0738, 199.0),
    ),
}


class Plot(NamedTuple):
    activation: str
    parametrisation: str
    kernel: str

    def __str__(self) -> str:
        return f"{self.activation} {self.parametrisation}, {self.kernel}"


PLOTS = {
    str(plot): plot
    for plot in (Plot(a, p, k) for k in KERNELS for a in ACTIVATIONS for p in PARAMETRISATIONS)
}


# What counts as the same radius or error, and which share of them has to be.
_FACTOR, _SHARE = 2.0, 0.75
_TENTH, _LOST = 0.1, 1.0


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """Verdicts on the curves of a dataset of `run`: each published plot beside ours, then what is
    said of several plots together."""
    cells = {str(n): dataset.sel(plot=n) for n in dataset["plot"].values if n in PUBLISHED}
    verdicts, tenths, losts, drawn = [], [], [], []
    for name, cell in cells.items():
        known = PUBLISHED[name]
        tenth, lost = radii_at(cell, "shifted", _TENTH), radii_at(cell, "shifted", _LOST)
        said = f"{name}: error without perturbation"
        bare, _ = _compare(said, known.unperturbed, _median(cell, "trained"), cell)
        found = f"{bare.found}; {_describe_training(cell)}"
        tenths.append(_compare(f"{name}: error is 10 % at radius", known.tenth, tenth, cell))
        losts.append(_compare(f"{name}: model is lost at radius", known.lost, lost, cell))
        drawn.append(_compare(name, known.tenth, radii_at(cell, "drawn", _TENTH), cell))
        verdicts += [Verdict(bare.published, found, bare.agrees), tenths[-1][0], losts[-1][0]]
        verdicts.append(_judge_crossing(name, known, cell))
    said = {
        "radii at which the error is 10 %": tenths,
        "radii at which the model is lost": losts,
        "radii at which the error is 10 %, rates drawn as well (code of November 2023)": drawn,
    }
    for what, found in said.items():
        close = np.concatenate([close for _, close in found]) if found else np.zeros(0)
        text = f"{close.sum():.0f} of {close.size} within a factor {_FACTOR:g} of those published"
        verdicts.append(Verdict(what, text, _enough(close)))
    return verdicts + _judge_orders(cells) + _judge_widths(cells) + _judge_suprema(cells)


def radii_at(cell: "xr.Dataset", source: str, share: float) -> np.ndarray:
    """The radii at which errors pass a share of the mean square of the target, by width: the
    median over seeds."""
    curves = cell[source].transpose("seed", "width", "radius").values
    level = share * float(cell["power"])
    return radius_at(cell["radius"].values, curves, cell["width"].values, level)


def _median(cell: "xr.Dataset", name: str) -> np.ndarray:
    return cell[name].median("seed").transpose("width", ...).values


def _enough(near: np.ndarray) -> bool | None:
    return bool(near.mean() >= _SHARE) if near.size else None


def _describe_training(cell: "xr.Dataset") -> str:
    epochs = ", ".join(f"{value:g}" for value in _median(cell, "epochs"))
    reached = cell["validation"] < cell["threshold"]
    return (
        f"{epochs} epochs, below the threshold in {int(reached.sum())} of {reached.size} runs; "
        f"slowest rates {listed(_median(cell, 'slowest_rate'))}"
    )


def _compare(
    what: str, known: Sequence[float], found: np.ndarray, cell: "xr.Dataset"
) -> tuple[Verdict, np.ndarray]:
    """Numbers of some widths beside those published, and which of them are near."""
    pairs = zip(map(int, cell["width"].values), found, strict=True)
    both = [(m, known[WIDTHS.index(m)], value) for m, value in pairs if m in WIDTHS]
    close = near([value for *_, value in both], [old for _, old, _ in both], _FACTOR)
    at = ", ".join(str(m) for m, *_ in both)
    return (
        Verdict(
            f"{what} {listed(old for _, old, _ in both)} (m = {at})",
            f"{listed(value for *_, value in both)}; {close.sum()} of {close.size} within a factor "
            f"{_FACTOR:g}",
            _enough(close),
        ),
        close,
    )


def _judge_crossing(name: str, known: Published, cell: "xr.Dataset") -> Verdict:
    """Whether and where the widest model becomes worse than the narrowest."""
    power = float(cell["power"])
    place = lambda at, error: f"cross at {at:.2g}, at an error of {error / power:.2g} times 100 %"
    ends = WIDTHS[0], WIDTHS[-1]
    said = f"{name}: curves of m = {ends[0]} and {ends[1]} "
    said += place(*known.crossing) if known.crossing else "do not cross"
    if not set(ends) <= set(cell["width"].values):
        return Verdict(said, "not both widths were measured", None)
    radii = cell["radius"].values
    curves = _median(cell.sel(width=list(ends)), "shifted")
    at = float(crossings(radii, curves)[0])
    if not np.isfinite(at):
        return Verdict(said, "they do not cross", known.crossing is None)
    # Below the first radius nothing is known.
    error = np.exp(np.interp(np.log(max(at, radii[0])), np.log(radii), np.log(curves[0])))
    close = known.crossing is not None and near(at, known.crossing[0], _FACTOR)
    return Verdict(said, f"they {place(at, error)}", bool(close))


def _judge_orders(cells: "Mapping[str, xr.Dataset]") -> list[Verdict]:
    """Which of two parametrisations has the larger radius at 10 %, at every width."""
    verdicts = []
    for first, second in ((a, b) for a in cells for b in cells):
        one, other = PLOTS[first], PLOTS[second]
        known = np.divide(PUBLISHED[first].tenth, PUBLISHED[second].tenth)
        same = (one.activation, one.kernel) == (other.activation, other.kernel)
        if not same or first == second or np.any(known < 1):
            continue
        found = radii_at(cells[first], "shifted", _TENTH)
        found = found / radii_at(cells[second], "shifted", _TENTH)
        text = f"{listed(found)} times"
        gains = f"{one.parametrisation} over {other.parametrisation}"
        said = f"{one.activation}, {one.kernel}: the radius at 10 % gains by {gains}"
        said += f" {listed(known)} times"
        verdicts.append(Verdict(said, text, bool(np.all(found > 1))))
        widths = [int(width) for width in cells[first]["width"].values]
        if gains == "softplus over diagonal" and WIDTHS[-1] in widths:
            gain = found[widths.index(WIDTHS[-1])]
            said = f"{one.activation}, m = {WIDTHS[-1]}: {gains} {known[-1]:.2g} times"
            close = bool(near(gain, known[-1], _FACTOR))
            verdicts.append(Verdict(said, f"{gain:.2g} times", close))
    return verdicts


def _judge_widths(cells: "Mapping[str, xr.Dataset]") -> list[Verdict]:
    """Radii of direct rates on the power law, the widest model's over the narrowest's."""
    direct = {
        name: cell
        for name, cell in cells.items()
        if PLOTS[name].kernel == "power law" and PLOTS[name].parametrisation != "softplus"
    }
    if not direct or not {WIDTHS[0], WIDTHS[-1]} <= set(
        next(iter(direct.values()))["width"].values
    ):
        return []
    verdicts = []
    ends = f"m = {WIDTHS[-1]} over m = {WIDTHS[0]}"
    for source, said, grows in (
        ("shifted", "radii at 10 % grow with the width in the plots of direct rates", True),
        ("error", "radii of the supremum fall with the width for direct rates (theorem)", False),
    ):
        ratios = {}
        for name, cell in direct.items():
            radii = radii_at(cell.sel(width=[WIDTHS[0], WIDTHS[-1]]), source, _TENTH)
            ratios[name.split(",")[0]] = radii[1] / radii[0]
        if grows:
            known = (PUBLISHED[name].tenth for name in direct)
            said += f", {listed(tenth[-1] / tenth[0] for tenth in known)} times"
        text = ", ".join(f"{name} {ratio:.2g}" for name, ratio in ratios.items())
        agrees = all((ratio > 1) == grows for ratio in ratios.values())
        verdicts.append(Verdict(f"power law, {ends}: {said}", f"times {text}", agrees))
    return verdicts


def _judge_suprema(cells: "Mapping[str, xr.Dataset]") -> list[Verdict]:
    """What random perturbations miss."""
    if not cells:
        return []
    ratios = np.concatenate(
        [
            radii_at(cell, "error", _TENTH) / radii_at(cell, "shifted", _TENTH)
            for cell in cells.values()
        ]
    )
    return [
        Verdict(
            "the largest error of random perturbations stands for the supremum",
            f"radius at 10 % by ascent over that of random perturbations: {ratios.min():.2g} to "
            f"{ratios.max():.2g}, median {np.median(ratios):.2g}",
            bool(np.all(ratios >= 1 / _FACTOR)),
        )
    ]
