"""A hook of MkDocs: the page of the command line shows what `--help` prints.

A line `<!-- help: NAME -->` of a page stands for the help of the command `memjax NAME`, and
`<!-- help: memjax -->` for that of `memjax` itself.
"""

import json
import os
import re
import subprocess
import sys
from typing import Any

from mkdocs.exceptions import PluginError

PLACE = re.compile(r"^<!-- help: (\w+) -->$", re.MULTILINE)
# One process for all, since JAX is imported in it.
HELP = """
import contextlib, io, json
from memjax.cli import COMMANDS, main
answers = {}
for name in ("memjax", *COMMANDS):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        status = main(["--help"] if name == "memjax" else [name, "--help"])
    assert status == 0, (name, status)
    answers[name] = printed.getvalue()
print(json.dumps(answers))
"""


def helps() -> dict[str, str]:
    """What `--help` prints, for every command."""
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", HELP]
    answer = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
    if answer.returncode != 0:
        raise PluginError(f"`memjax --help` failed: {answer.stderr}")
    return json.loads(answer.stdout)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    places = PLACE.findall(markdown)
    if not places:
        return markdown
    shown = helps()
    if sorted(places) != sorted(shown):
        there, here = ", ".join(sorted(shown)), ", ".join(sorted(places))
        raise PluginError(f"{page.file.src_uri} shows the help of {here}, but there are {there}")
    shown = {name: re.sub(r" +$", "", text, flags=re.MULTILINE) for name, text in shown.items()}
    return PLACE.sub(lambda place: f"```text\n{shown[place[1]].strip()}\n```", markdown)
