import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._checks import check_flag, said
from .._text import readable
from ._environment import check_devices, check_figures
from ._found import (
    find_cache,
    find_devices,
    find_extras,
    find_faulty_packages,
    find_threads,
    find_variables,
    find_versions,
    has_unused_gpu,
)
from ._self_test import run_tests, Test


@readable()
@dataclasses.dataclass(frozen=True)
class Installation:
    """What memjax runs on, and whether it gives right answers there.

    **Attributes:**

    - `versions`: the versions of Python, of memjax and of what it is built on.
    - `platform`: what JAX computes on by default: cpu, gpu or tpu; `None` if it finds no device.
    - `devices`: the name, platform, kind and memory in bytes (`None` if not known) of each device.
    - `float64`: whether numbers have 64 bits, and the device computes with all of them.
    - `cache`: whether compiled programs are kept for the next process (`used`), their `folder`,
        how many `programs` there are and their `bytes`.
    - `threads`: the cores of the `machine` and of this `process`, and the `pools` of threads of
        numerical libraries.
    - `variables`: the environment variables that change what memjax does.
    - `extras`: for every optional part of memjax the packages that are missing.
    - `tests`: what the tests have found, each with its `name`, `referee`, `expected`, `found` and
        `tolerance`, and whether it `passed`; none if they were not run.
    - `seconds`: how long the tests took.
    - `problems`: what is wrong, each with what to do.
    - `hints`: what could be better.
    """

    versions: dict[str, str]
    platform: str | None
    devices: list[dict[str, Any]]
    float64: bool
    cache: dict[str, Any]
    threads: dict[str, Any]
    variables: dict[str, str]
    extras: dict[str, list[str]]
    tests: list[Test]
    seconds: float
    problems: list[str]
    hints: list[str]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        tests = [dataclasses.asdict(test) | {"passed": test.passed} for test in self.tests]
        return dataclasses.asdict(self) | {"tests": tests, "sound": self.sound}

    def __str__(self) -> str:
        names = [name for name in self.versions if name != "memjax"]
        versions = [f"{name} {self.versions[name]}" for name in names]
        rows = {
            "memjax": [self.versions["memjax"], *_in_lines(versions)],
            "devices": [_describe_device(device) for device in self.devices] or ["none"],
            "float64": ["on, and the device computes with it" if self.float64 else "NO"],
            "cache": [_describe_cache(self.cache)],
            "cores": [f"{self.threads['process']} of {self.threads['machine']}"],
            "threads": self.threads["pools"] or ["no pools are loaded"],
            "variables": [f"{name}={value}" for name, value in self.variables.items()] or ["none"],
            "extras": [
                f"{name}: {'without ' + ', '.join(missing) if missing else 'complete'}"
                for name, missing in self.extras.items()
            ],
            "tests": [
                *(_describe_test(test) for test in self.tests),
                f"in {self.seconds:.1f} s" if self.tests else "not run",
            ],
        }
        lines = [
            f"{'' if k else name:11}{text}"
            for name, texts in rows.items()
            for k, text in enumerate(texts)
        ]
        lines += ["", *(f"hint: {hint}" for hint in self.hints)]
        lines += [f"problem: {problem}" for problem in self.problems]
        lines.append("Something is wrong." if self.problems else "All is well.")
        return "\n".join(lines)


def doctor(*, self_test: bool = True) -> Installation:
    """Look at the installation: packages, devices, float64, the cache of compiled programs,
    threads and environment variables; and compute three answers that are known without memjax.

    The tests are a sum in double-double arithmetic, the norm of a kernel against its closed form,
    and a plateau against an integration in 50 digits. They take up to ten seconds where nothing
    is compiled yet, and need float64. Settings of JAX are left as they are.

    **Arguments:**

    - `self_test`: whether to run the tests.

    **Returns:**

    An [`memjax.Installation`][]; `print` shows it, and its `problems` say what to do.
    """
    self_test = check_flag("self_test", self_test)
    problems = list(find_faulty_packages())
    problems += _complaints(check_devices, check_figures)
    devices = _or_else([], find_devices)
    working = bool(devices)
    precise = working and _has_float64()
    if working and not precise:
        problems.append(_ask_for_float64(devices))
    tests, start = [], time.monotonic()
    if self_test and precise:
        try:
            tests = run_tests()
        except Exception as error:
            problems.append(
                f"the tests end with {said(error)}; please report it, with what is above."
            )
        problems += [
            f"{test.name} is {test.found:.12g} and must be {test.expected:.12g}; unset "
            "`XLA_FLAGS`, set `JAX_PLATFORMS` to cpu, and if neither helps, report it with what is "
            "above."
            for test in tests
            if not test.passed
        ]
    seconds = time.monotonic() - start
    cache, hints = find_cache(), []
    if has_unused_gpu(devices):
        hints.append(
            "there is an NVIDIA GPU here that JAX does not use; run pip install 'jax[cuda12]', or "
            "jax[cuda13] for a driver of version 580 or newer."
        )
    if not cache["used"]:
        hints.append(
            "every process compiles anew; set `JAX_COMPILATION_CACHE_DIR` to a folder. The command "
            "line of memjax has one of its own with jax 0.10 or newer, if it can write it."
        )
    return Installation(
        versions=find_versions(),
        platform=jax.default_backend() if working else None,
        devices=devices,
        float64=precise,
        cache=cache,
        threads=find_threads(),
        variables=find_variables(),
        extras=find_extras(),
        tests=tests,
        seconds=seconds,
        problems=problems,
        hints=hints,
    )


def _complaints(*checks: Callable[[], None]) -> list[str]:
    found = []
    for check in checks:
        try:
            check()
        except ValueError as error:
            found.append(str(error))
    return found


def _or_else(other: Any, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except Exception:
        return other


def _has_float64() -> bool:
    """Whether the device computes with 53 binary digits."""
    small = 2.0**-52

    def add() -> bool:
        total = jax.jit(jnp.add)(jnp.asarray(1.0), jnp.asarray(small))
        return total.dtype == jnp.float64 and float(total) - 1.0 == small

    return _or_else(False, add)


def _ask_for_float64(devices: list[dict[str, Any]]) -> str:
    if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return (
            'float64 is off; call jax.config.update("jax_enable_x64", True) before making any '
            "array, or set `JAX_ENABLE_X64` to 1."
        )
    return (
        f"{devices[0]['kind']} does not compute in float64; set `JAX_PLATFORMS` to cpu, or take "
        "another device."
    )


def _describe_device(device: dict[str, Any]) -> str:
    memory = "" if device["memory"] is None else f", {device['memory'] / 2**30:.1f} GiB"
    kind = "" if device["kind"] == device["platform"] else f", {device['kind']}"
    return f"{device['name']} ({device['platform']}{kind}{memory})"


def _describe_cache(cache: dict[str, Any]) -> str:
    if not cache["used"]:
        return "not used"
    return f"{cache['folder']}: {cache['programs']} programs, {cache['bytes'] / 2**20:.1f} MiB"


def _describe_test(test: Test) -> str:
    verdict = "passed" if test.passed else "FAILED"
    return (
        f"{verdict}: {test.name}, {test.found:.10g} against {test.expected:.10g} of {test.referee}"
    )


def _in_lines(words: list[str], width: int = 80) -> list[str]:
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f"{', ' if lines[-1] else ''}{word}"
    return lines
