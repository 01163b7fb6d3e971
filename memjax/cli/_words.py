"""What the words after the name of a command mean."""

import dataclasses
from pathlib import Path
from typing import Any

import tyro

from .._checks import shown, unknown_name
from ..sweeps import checked, PlateauSweep, read_toml
from ._commands import COMMANDS

_SHELLS = ("bash", "zsh", "fish")
# How many words follow.
_WAYS = {"--tyro-print-completion": 1, "--tyro-write-completion": 2}


def check_words(words: list[str]) -> None:
    """Refuse what is too long, and a first word that asks for nothing."""
    name = words[0]
    for word in words:
        if len(word) > 1000:
            raise ValueError(
                f"`{name[:40]}` must have arguments of at most 1000 characters, got "
                f"{shown(word)}; shorten it."
            )
    if name not in (*COMMANDS, *_WAYS):
        raise ValueError(
            f"`memjax` must be followed by a command, got {shown(name)}; "
            f"{unknown_name(name, list(COMMANDS))}"
        )


def parse(name: str, words: list[str]) -> Any:
    """A command with the values of its options."""
    command, default = COMMANDS[name].load(), None
    path = _find(words, "--spec")
    if name == "sweep":
        default = _parse_specification(command, path, words)
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
    return tyro.cli(command, prog=f"memjax {name}", args=words, default=default)


def _parse_specification(command: Any, path: Path | None, words: list[str]) -> Any:
    from ._sweep import SPECIFICATION  # only for this command

    if path is None and "--resume" in words:
        # What is taken up is known.
        kept = (_find(words, "--out") or command.out) / SPECIFICATION
        path = kept if kept.is_file() else None
    return None if path is None else command(PlateauSweep(**read_toml(path, PlateauSweep, "spec")))


def complete(words: list[str]) -> None:
    """Print or write the script that completes the words of all commands in a shell."""
    way, *given = words
    if len(given) != _WAYS[way] or given[0] not in _SHELLS:
        raise ValueError(
            f"`{way}` must be followed by a shell, one of {', '.join(_SHELLS)}"
            f"{', and a file' if _WAYS[way] > 1 else ''}, got {shown(' '.join(given))}; "
            f"pass for example {way} bash{' memjax.bash' if _WAYS[way] > 1 else ''}."
        )
    commands = {name: command.load() for name, command in COMMANDS.items()}
    tyro.extras.subcommand_cli_from_dict(commands, prog="memjax", args=words)


def _find(words: list[str], option: str) -> Path | None:
    """The path that an option gives."""
    for word, following in zip(words, [*words[1:], None], strict=False):
        if word == option and following is not None:
            return Path(following)
        if word.startswith(f"{option}="):
            return Path(word.removeprefix(f"{option}="))
    return None
