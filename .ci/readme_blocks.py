"""Runs every Python block of a Markdown file, each in a process and a folder of its own.

    python .ci/readme_blocks.py README.md

The first block that fails ends the run with its line number and exit status 1.
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


def main(path: Path) -> int:
    blocks = list(python_blocks(path.read_text(encoding="utf-8")))
    if not blocks:
        print(f"{path}: no Python blocks found", file=sys.stderr)
        return 1
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    # The package must come from the environment, as it does for a reader.
    environment.pop("PYTHONPATH", None)
    for line, code in blocks:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            block = Path(folder, "block.py")
            # Blank lines put the block where it stands in the file, so tracebacks agree with it.
            block.write_text("\n" * (line - 1) + code, encoding="utf-8")
            status = subprocess.run(
                [sys.executable, block],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
            ).returncode
        if status != 0:
            print(f"{path}:{line}: this block exited with status {status}", file=sys.stderr)
            return 1
        print(f"{path}:{line}: passed in {time.perf_counter() - start:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
