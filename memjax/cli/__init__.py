"""The command line: thin commands over the public API."""

import dataclasses
import hashlib
import os
import platform
import sys
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import tyro

from .._checks import said, shown
from ..sweeps import checked, PlateauSweep, read_toml
from ._approximate import Approximate as Approximate
from ._diagnose import Diagnose as Diagnose
from ._interrupts import ending, INTERRUPTS
from ._log import Log as Log
from ._plateaus import Fit as Fit
from ._plateaus import Plateau as Plateau
from ._plateaus import Plot as Plot
from ._reproduce import Reproduce as Reproduce
from ._status import Status as Status
from ._sweep import SPECIFICATION
from ._sweep import Sweep as Sweep

COMMANDS = {
    "sweep": Sweep, "plateau": Plateau, "fit": Fit, "plot": Plot, "reproduce": Reproduce,
    "diagnose": Diagnose, "approximate": Approximate, "status": Status,
    "log": Log,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    **Arguments:**

    - `arguments`: the words after `memjax`; by default those of the process.

    **Returns:**

    The exit status: 0 if all went well, 1 if a measurement has no trustworthy answer, 2 for wrong
    input, 3 for a bug in memjax, and if it was interrupted 128 and the number of the signal: 130
    for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP. As the command of a process it ends within five
    seconds of a signal, whatever it is at.
    """
    own = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    INTERRUPTS.begin()
    try:
        with ending() if own else nullcontext():
            _configure()
            return _parse(arguments).run()
    except KeyboardInterrupt:
        INTERRUPTS.say()
        return INTERRUPTS.status or 130
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception as error:
        if os.environ.get("MEMJAX_TRACEBACK"):
            raise
        return _report(error)


def _keep_compiled() -> None:
    """Keep what is compiled for the next time, in the user's folder for caches, unless JAX has been
    told where to keep it or not to.

    Code for one processor may not run on another, and a home may be shared: every kind of machine
    has a folder of its own.
    """
    told, enabled = (
        getattr(jax.config, name)
        for name in ("jax_compilation_cache_dir", "jax_enable_compilation_cache")
    )
    # What jax 0.6 reads back on a CPU computes something else.
    if told or not enabled or tuple(map(int, jax.__version__.split(".")[:2])) < (0, 10):
        return
    try:
        kind = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0]
    except (OSError, IndexError):
        kind = platform.processor()
    machine = hashlib.sha256(f"{platform.machine()} {kind}".encode()).hexdigest()[:12]
    given = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        home = Path(given) if given else Path.home() / ".cache"
        folder = home / "memjax" / f"jax-{jax.__version__}-{machine}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _configure() -> None:
    """Settings of the process, and the environment variables of others that would stop it late."""
    jax.config.update("jax_enable_x64", True)
    # NaN is what stands where there is no answer.
    jax.config.update("jax_debug_nans", False)
    jax.config.update("jax_debug_infs", False)
    _keep_compiled()
    try:
        jax.devices()
    except Exception as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        if platforms is None:
            raise
        raise ValueError(
            f"`JAX_PLATFORMS` must name a platform that JAX finds here, got {shown(platforms)}; "
            "unset it, or set it to cpu."
        ) from error
    if "MPLBACKEND" in os.environ:
        try:
            import matplotlib  # noqa: F401
        except ValueError as error:
            raise ValueError(
                f"`MPLBACKEND` must name a backend of Matplotlib, got "
                f"{shown(os.environ['MPLBACKEND'])}; unset it."
            ) from error


def _report(error: Exception) -> int:
    """Say what went wrong, in a line where it is the input; the exit status."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        print("memjax: error: not enough memory; make the problem smaller.", file=sys.stderr)
        return 2
    if isinstance(error, (ValueError, TypeError, OSError, ImportError)):
        print(f"memjax: error: {textwrap.shorten(str(error), 600)}", file=sys.stderr)
        return 2
    print(
        f"memjax: error: {said(error)}\n"
        "This is a bug in memjax. Please report it, with the command and what it prints with\n"
        "MEMJAX_TRACEBACK=1 in its environment.",
        file=sys.stderr,
    )
    return 3


def _parse(arguments: list[str]) -> Any:
    for word in arguments:
        if len(word) > 1000:
            raise ValueError(
                f"`{arguments[0][:40]}` must have arguments of at most 1000 characters, got "
                f"{shown(word)}; shorten it."
            )
    if not arguments or arguments[0] not in COMMANDS:
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="memjax",
            description="The curse of memory in recurrent models, measured.",
            args=arguments or ["--help"],
        )
    name, rest = arguments[0], arguments[1:]
    command, default = COMMANDS[name], None
    path = _find(rest, "--spec")
    if path is None and command is Sweep and "--resume" in rest:
        # What is taken up is known.
        kept = (_find(rest, "--out") or Sweep.out) / SPECIFICATION
        path = kept if kept.is_file() else None
    if path is not None and command is Sweep:
        default = Sweep(PlateauSweep(**read_toml(path, PlateauSweep, "spec")))
    elif path is not None:
        # What has no default and is not in the file either is asked for on the command line.
        absent = {
            field.name: tyro.MISSING
            for field in dataclasses.fields(command)
            if field.default is dataclasses.MISSING
        }
        given = read_toml(path, command, "spec")
        given = {key: checked(command, key, value) for key, value in given.items()}
        default = command(**absent | given)
    return tyro.cli(command, prog=f"memjax {name}", args=rest, default=default)


def _find(arguments: list[str], option: str) -> Path | None:
    """The path that an option gives."""
    for word, following in zip(arguments, [*arguments[1:], None], strict=False):
        if word == option and following is not None:
            return Path(following)
        if word.startswith(f"{option}="):
            return Path(word.removeprefix(f"{option}="))
    return None
