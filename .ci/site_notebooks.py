"""A hook of MkDocs: the notebooks as pages of the site, with what they showed when executed.

`notebooks/name.ipynb` becomes the page `examples/name.md`, its figures `examples/name-1.png` and so
on, which the gallery `docs/examples/index.md` shows too. Nothing is executed: the tests hold that
what is stored is what memjax shows.
"""

import base64
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# A table of pandas brings a style of its own; here it has that of all tables of the site.
STYLE = re.compile(r"<style scoped>.*?</style>", re.DOTALL)
TABLE = '<table border="1" class="dataframe">'
# Python-Markdown would read HTML of outputs, so it is put in place afterwards.
PLACE = "<div>output {} of the notebook</div>"
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)

# The outputs in HTML, by page.
outputs: dict[str, list[str]] = {}


def joined(source: str | list[str]) -> str:
    """Text as the format of notebooks stores it: whole, or as lines."""
    return source if isinstance(source, str) else "".join(source)


def fence(text: str, kind: str) -> str:
    marks = "```"
    while marks in text:
        marks += "`"
    return f"{marks}{kind}\n{text.rstrip()}\n{marks}"


class Page:
    """One notebook, as Markdown and the files that go with it."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.figures: dict[str, bytes] = {}
        self.html: list[str] = []
        self.heading = self.name
        parts = []
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = joined(cell["source"])
            if cell["cell_type"] == "markdown":
                parts.append(source)
                self.heading = [self.heading, *HEADING.findall(source)][-1]
            elif cell["cell_type"] == "code":
                parts.append(fence(source, "python"))
                parts += [self.shown(output) for output in cell["outputs"]]
            else:
                raise PluginError(f"{path}: a cell of type {cell['cell_type']!r}")
        title, _, rest = parts[0].partition("\n")
        download = f"*An executed notebook: [{path.name}]({path.name}){{ download }}*"
        self.markdown = "\n\n".join([title, download, rest, *parts[1:]])

    def shown(self, output: dict[str, Any]) -> str:
        """An output as Markdown: the richest of the forms in which it is stored."""
        if output["output_type"] == "stream":
            return fence(joined(output["text"]), " { .text .no-copy .output }")
        if output["output_type"] == "error":
            raise PluginError(f"{self.name}.ipynb shows an error: {output['evalue']}")
        data = output["data"]
        if "text/html" in data:
            table = STYLE.sub("", joined(data["text/html"])).replace(TABLE, "<table>")
            self.html.append(f'<div class="output" markdown="0">{table}</div>')
            return PLACE.format(len(self.html))
        for kind, ending in (("image/svg+xml", "svg"), ("image/png", "png")):
            if kind in data:
                stored = joined(data[kind])
                name = f"{self.name}-{len(self.figures) + 1}.{ending}"
                binary = ending == "png"
                self.figures[name] = base64.b64decode(stored) if binary else stored.encode()
                words = re.sub(r"[\[\]$`*\\]", "", self.heading)
                return f"![{words}: figure]({name}){{ .output }}"
        return fence(joined(data["text/plain"]), " { .text .no-copy .output }")


def on_files(files: Any, config: Any) -> None:
    outputs.clear()
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        page = Page(path)
        made = {f"examples/{page.name}.md": page.markdown.encode()}
        made |= {f"examples/{name}": content for name, content in page.figures.items()}
        made[f"examples/{path.name}"] = path.read_bytes()
        for name, content in made.items():
            files.append(File.generated(config, name, content=content))
        outputs[f"examples/{page.name}.md"] = page.html


def on_page_content(html: str, page: Any, **_: Any) -> str:
    for number, output in enumerate(outputs.get(page.file.src_uri, []), start=1):
        html = html.replace(PLACE.format(number), output, 1)
    return html


def on_serve(server: Any, **_: Any) -> None:
    server.watch(str(NOTEBOOKS))
