"""Writes `coalescing_references.json`: plateau times of starts whose modes merge.

    python tests/reference/make_coalescing_references.py

Every random start whose modes outnumber the target's exponentials comes to this: several modes
share one exponential and approach each other, on a curved slow manifold with a singular Hessian.
The integration takes 100 digits and is confirmed as in `make_plateau_references.py`, which
describes the entries. The exit is a drop of 2 % below the plateau, the bump's squared norm
(`reference`), also for starts above it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

from make_plateau_references import write

PATH = pathlib.Path(__file__).with_name("coalescing_references.json")
ONE, TWO, THREE = ([1.0], [1.0]), ([1.0, 0.5], [1.0, 2.5]), ([1.0, 0.5, 0.25], [1.0, 2.0, 4.0])
SLOW = [1.0], [0.5]


def _close(share: float, distance: float) -> tuple[list[float], list[float]]:
    """Two modes around the target's one, at a distance."""
    return [share, 1 - share], [1 + (1 - share) * distance, 1 - share * distance]


def cases() -> Iterator[dict[str, Any]]:
    """The measurements to make, the quick ones first within each kind."""

    def case(name, target, start, inverse_omega, reparam="direct"):
        return {
            "start": name,
            "reparam": reparam,
            "inverse_omega": float(inverse_omega),
            "A": target[0],
            "W": target[1],
            "sigma": 0.5,
            "c0": 1.0,
            "a0": start[0],
            "w0": start[1],
            "exit": "RelativeLossDrop",
            "delta": 0.02,
            "reference": "bump",
        }

    merging = [0.36, 0.64], [1.47, 0.815]
    micro = [0.5, 0.5], [1.000001, 0.999999]
    yield case("merging", ONE, merging, 20)
    yield case("close-2e-6", ONE, micro, 20)
    for T in [8, 14]:
        yield case("merging", ONE, merging, T)
    yield case("close-2e-6", ONE, micro, 12)
    for distance in [1e-2, 1e-4, 1e-8]:
        yield case(f"close-{distance:g}", ONE, _close(0.5, distance), 16)
    yield case("close-0.001", ONE, _close(0.25, 1e-3), 18)
    for reparam in ["exp", "softplus"]:
        for T in [12, 20]:
            yield case("merging", ONE, merging, T, reparam)
    later = [0.125, 0.75], [0.5, 1.75]
    for T in [12, 18]:
        yield case("meet-later", ONE, later, T)
    three = [0.25, 0.4375, 0.3125], [1.375, 0.9375, 0.8125]
    for T in [8, 12, 16, 20]:
        yield case("merging", ONE, three, T)
    yield case("close-0.001", ONE, ([0.25, 0.5, 0.25], [1.001, 1.0, 0.9985]), 14)
    off = [0.25, 0.875, -0.375], [0.75, 1.75, 1.1875]
    for T in [10, 18]:
        yield case("meet-later", ONE, off, T)
    yield case("merging", ONE, three, 16, "softplus")
    pairs = [0.4375, 0.5625, 0.25, 0.25], [1.125, 0.90625, 2.75, 2.25]
    for T in [8, 12, 16, 20]:
        yield case("two-pairs", TWO, pairs, T)
    yield case("two-pairs", TWO, pairs, 14, "exp")
    one_pair = [0.5625, 0.4375, 0.5, 0.25], [1.125, 0.84375, 2.0, 4.0]
    for T in [10, 16]:
        yield case("one-pair-of-three", THREE, one_pair, T)
    four = [0.25, 0.375, 0.125, 0.25], [1.375, 0.9375, 0.6875, 1.0625]
    for T in [8, 14, 20]:
        yield case("merging", ONE, four, T)
    random = [0.46875, -0.28125, 0.71875, 0.09375], [0.84375, 2.125, 1.40625, 0.65625]
    for T in [10, 16]:
        yield case("meet-later", ONE, random, T)
    # Half the rates: a memory of 40 here is about one of 20 above.
    for T in [24, 32, 40]:
        yield case("merging-slow", SLOW, ([0.25, 0.4375, 0.3125], [0.6875, 0.46875, 0.40625]), T)
    for T in [26, 30, 32]:
        yield case("merging", ONE, merging, T)
    yield case("close-2e-6", ONE, micro, 28)
    yield case("merging", ONE, merging, 26, "exp")
    slow = [0.36, 0.64], [0.735, 0.4075]
    yield case("merging-slow", SLOW, slow, 40)
    yield case("merging", ONE, merging, 22)
    yield case("merging", ONE, merging, 24)
    yield case("close-2e-6", ONE, micro, 24)
    yield case("close-1e-08", ONE, _close(0.5, 1e-8), 24)
    for T in [22, 24, 26]:
        yield case("merging", ONE, merging, T, "softplus")
    # Beyond the reach of one spare mode: the flow comes to rest above the exit.
    yield case("merging-slow", SLOW, slow, 56)
    yield case("merging", ONE, three, 24)
    yield case("merging", ONE, four, 26)
    yield case("two-pairs", TWO, pairs, 26)


if __name__ == "__main__":
    write(PATH, cases(), digits=100)
