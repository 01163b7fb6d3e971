"""Checks the types of all Python blocks of the README and the documentation, as a reader's code.

    python .ci/typed_pages.py

The blocks of a page make one module, on the lines where they stand, so that a short block may use
what an earlier one has imported.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from page_blocks import python_blocks

ROOT = Path(__file__).parents[1]
# Standard, but for what is right in examples that are read one after the other.
SETTINGS = {
    "extraPaths": [str(ROOT)],
    "typeCheckingMode": "standard",
    "pythonVersion": "3.11",
    "reportIncompatibleMethodOverride": False,  # arguments without annotations
    "reportOptionalSubscript": False,  # Diffrax: a solution may have no `ys`
    "reportRedeclaration": False,
    "reportUnusedExpression": False,  # a value to be shown
}


def module(text: str) -> str:
    """The Python blocks of a page, with blank lines for all the rest of it."""
    lines = [""] * len(text.splitlines())
    for start, code in python_blocks(text):
        block = code.splitlines()
        lines[start - 1 : start - 1 + len(block)] = block
    return "\n".join(lines) + "\n"


def check(pages: dict[str, str]) -> list[str]:
    """What Pyright finds wrong with pages, given as text by their names."""
    with tempfile.TemporaryDirectory() as folder:
        names = {}
        for name, text in pages.items():
            path = Path(folder, name.replace("/", "_").replace(".md", ".py"))
            path.write_text(module(text), encoding="utf-8")
            names[str(path)] = name
        Path(folder, "pyrightconfig.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
        command = [sys.executable, "-m", "pyright", "-p", folder, "--outputjson"]
        command += ["--pythonpath", sys.executable]
        run = subprocess.run(command, capture_output=True, text=True)
        found = json.loads(run.stdout)
        if found["summary"]["filesAnalyzed"] < len(pages):
            raise RuntimeError(f"{found['summary']['filesAnalyzed']} of {len(pages)} pages read")
        return [
            f"{names[entry['file']]}:{entry['range']['start']['line'] + 1}: {entry['message']}"
            for entry in found["generalDiagnostics"]
        ]


def main() -> int:
    paths = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    pages = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in paths}
    pages = {name: text for name, text in pages.items() if any(python_blocks(text))}
    complaints = check(pages)
    print(*complaints, f"{len(pages)} pages, {len(complaints)} complaints", sep="\n")
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main())
