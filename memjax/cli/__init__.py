"""The command line: thin commands over the public API."""

import gc
import os
import sys
import textwrap
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import version

from ._commands import Command as Command
from ._commands import COMMANDS
from ._interrupts import ending, INTERRUPTS

# What imports JAX is imported where it is used: help and version must not wait for it.


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
            return _run(arguments, own)
    except KeyboardInterrupt:
        INTERRUPTS.say()
        return INTERRUPTS.status or 130
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception as error:
        if os.environ.get("MEMJAX_TRACEBACK"):
            raise
        return _explain(error)


def _run(arguments: list[str], own: bool) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(_write_help())
        return 0
    if name == "--version":
        print(f"memjax {version('memjax')}")
        return 0
    if own:
        # The search for cycles took 15 % of a short sweep (measured): what is imported stays, and
        # so does most of what JAX makes of a program.
        gc.disable()
    _check_jax()
    from ._words import check_words, complete, parse

    check_words(arguments)
    if name not in COMMANDS:
        complete(arguments)
        return 0
    from ._settings import check_environment, configure

    configure()
    # To show its options a command needs no device, and the doctor says what is wrong itself.
    if name != "doctor" and not {"-h", "--help"} & set(rest):
        check_environment()
    command = parse(name, rest)
    if own:
        gc.freeze()
        gc.set_threshold(200_000, 10, 10)
        gc.enable()
    return command.run()


def _check_jax() -> None:
    try:
        import jax  # noqa: F401
    except Exception as error:  # such as a `RuntimeError` for versions that do not go together
        raise ImportError(
            f"JAX must be there, got {type(error).__name__}: {error}; run "
            "pip install --upgrade jax jaxlib."
        ) from error


def _write_help() -> str:
    options = {
        "-h, --help": "Show this help.",
        "--version": "Show the version.",
        "--tyro-print-completion SHELL": "Print what completes commands and options in a shell: "
        "bash, zsh or fish.",
        "--tyro-write-completion SHELL FILE": "Write it to a file.",
    }
    summaries = {name: command.summary for name, command in COMMANDS.items()}
    return "\n\n".join(
        [
            "usage: memjax [OPTION] | memjax COMMAND [OPTIONS]",
            "The curse of memory in recurrent models, measured.",
            _write_list("commands", summaries),
            _write_list("options", options),
            "memjax COMMAND --help shows the options of a command, with an example.",
        ]
    )


def _write_list(title: str, entries: dict[str, str]) -> str:
    column, lines = 2 + max(len(name) for name in COMMANDS) + 2, [f"{title}:"]
    for name, text in entries.items():
        first = f"  {name}".ljust(column)
        if len(first) > column:
            lines.append(first)
            first = " " * column
        lines += textwrap.wrap(text, 80, initial_indent=first, subsequent_indent=" " * column)
    return "\n".join(lines)


def _explain(error: Exception) -> int:
    """Say what went wrong, in a line where it is the input; the exit status."""
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        print("memjax: error: not enough memory; make the problem smaller.", file=sys.stderr)
        return 2
    if isinstance(error, (ValueError, TypeError, OSError, ImportError)):
        print(f"memjax: error: {textwrap.shorten(str(error), 600)}", file=sys.stderr)
        return 2
    from .._checks import said

    print(
        f"memjax: error: {said(error)}\n"
        "This is a bug in memjax. Please report it, with the command and what it prints with\n"
        "MEMJAX_TRACEBACK=1 in its environment.",
        file=sys.stderr,
    )
    return 3
