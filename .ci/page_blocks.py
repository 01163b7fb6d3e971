"""Runs every Python block of Markdown pages, as a reader does who copies them.

    python .ci/page_blocks.py README.md docs

A folder stands for all pages in it. A block that imports memjax is a script of its own, in a
process and a folder of its own; one that does not goes on from the block before it. As many are
run side by side as there are cores. The first script that fails ends the run with its page, its
line and exit status 1.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


def run(script: tuple[Path, int, str]) -> tuple[bool, str]:
    """Whether a script of a page ended well, and what is to be said of it."""
    page, line, code = script
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    # The package must come from the environment, as it does for a reader.
    environment.pop("PYTHONPATH", None)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "script.py")
        file.write_text("\n" * (line - 1) + code, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, file],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if done.returncode != 0:
        said = f"{page}:{line}: this block exited with status {done.returncode}"
        return False, f"{done.stdout}{said}"
    return True, f"{page}:{line}: passed in {time.perf_counter() - start:.1f} s"


def main(paths: list[Path]) -> int:
    found: dict[str, tuple[Path, int, str]] = {}
    for path in paths:
        pages = sorted(path.rglob("*.md")) if path.is_dir() else [path]
        own = [
            (page, line, code)
            for page in pages
            for line, code in scripts(page.read_text(encoding="utf-8"))
        ]
        if not own:
            print(f"{path}: no Python blocks found", file=sys.stderr)
            return 1
        for script in own:
            # The same lines on two pages are run once.
            found.setdefault(script[2], script)
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for passed, said in executor.map(run, found.values()):
            print(said, file=sys.stdout if passed else sys.stderr, flush=True)
            if not passed:
                executor.shutdown(cancel_futures=True)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
