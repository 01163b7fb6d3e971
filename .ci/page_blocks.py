"""Runs every Python block of Markdown pages, as a reader does who copies them.

    python .ci/page_blocks.py README.md docs

A folder stands for all pages in it. A block that imports memjax is a script of its own, in a
process and a folder of its own; one that does not goes on from the block before it. The first
script that fails ends the run with its page, its line and exit status 1.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# A closing fence is as long as the opening one, at least, and names no language.
FENCE = re.compile(r"^ {0,3}(?P<marks>`{3,}|~{3,})\s*(?P<info>[^`]*)$")

IMPORT = re.compile(r"^\s*(?:import|from) memjax\b", re.MULTILINE)


def python_blocks(text: str) -> Iterator[tuple[int, str]]:
    """The line number of the first line of each Python block, and its code."""
    opened, start, lines = None, 0, []
    for number, line in enumerate(text.splitlines(), start=1):
        match = FENCE.match(line)
        if opened is None:
            if match:
                opened, start, lines = match, number + 1, []
        elif match and not match["info"] and match["marks"].startswith(opened["marks"]):
            if opened["info"].split()[:1] == ["python"]:
                yield start, "\n".join(lines) + "\n"
            opened = None
        else:
            lines.append(line)
    if opened is not None:
        raise ValueError(f"the block that opens on line {start - 1} is never closed")


def scripts(text: str) -> Iterator[tuple[int, str]]:
    """The line number and the code of each script that the blocks of a page make."""
    start, code = 0, ""
    for line, block in python_blocks(text):
        if code and not IMPORT.search(block):
            # Blank lines put each block where it stands on the page, so tracebacks agree with it.
            code += "\n" * (line - start - code.count("\n")) + block
            continue
        if code:
            yield start, code
        start, code = line, block
    if code:
        yield start, code


def run(page: Path) -> bool:
    """Whether all scripts of a page ended well."""
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    # The package must come from the environment, as it does for a reader.
    environment.pop("PYTHONPATH", None)
    for line, code in scripts(page.read_text(encoding="utf-8")):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder, "script.py")
            script.write_text("\n" * (line - 1) + code, encoding="utf-8")
            status = subprocess.run(
                [sys.executable, script],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
            ).returncode
        if status != 0:
            print(f"{page}:{line}: this block exited with status {status}", file=sys.stderr)
            return False
        print(f"{page}:{line}: passed in {time.perf_counter() - start:.1f} s", flush=True)
    return True


def main(paths: list[Path]) -> int:
    pages = []
    for path in paths:
        found = sorted(path.rglob("*.md")) if path.is_dir() else [path]
        found = [page for page in found if list(python_blocks(page.read_text(encoding="utf-8")))]
        if not found:
            print(f"{path}: no Python blocks found", file=sys.stderr)
            return 1
        pages += found
    return 0 if all(map(run, pages)) else 1


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
