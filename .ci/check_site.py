"""Reads every page of the site as a visitor without a network does, and fails for what is wrong.

    python .ci/check_site.py          # builds the site strictly, then checks it
    python .ci/check_site.py site     # checks a site that is built

Checked are, of all pages: links and anchors within the site; requests that fail or that go to
another host; errors on the console; pictures that do not show; LaTeX that is left in the text, and
formulas that are not rendered. The search must find what newcomers look for.
"""

import argparse
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from playwright.sync_api import TimeoutError

from browser import browser, chromium, served, watch

ROOT = Path(__file__).parents[1]
# Words to be looked for, and a page that must be among those found.
SEARCHES = {
    "install": "getting-started/",
    "tutorial": "getting-started/",
    "citation": "citing/",
    "GPU": "getting-started/",
    "unresolved": "faq/",
    "SLURM": "cluster/",
    "plateau": "theory/",
    "diagnose": "diagnose/",
}
# What is wrong with what a page shows. Folded parts are unfolded first: they are text too.
READ = r"""
async () => {
  document.querySelectorAll("details").forEach(details => details.open = true);
  document.querySelectorAll(".tabbed-block").forEach(block => block.style.display = "block");
  const images = [...document.images];
  images.forEach(image => image.loading = "eager");
  const wrong = [];
  for (const image of images) {
    try { await image.decode(); } catch { wrong.push(`picture does not show: ${image.src}`); }
    if (!image.alt) wrong.push(`picture without a text: ${image.src}`);
  }
  await document.fonts.ready;
  const latex = /\\[a-zA-Z]+|\\[()[\]{}]|(?<!\w)\$[^$\s][^$]*\$|[_^]\{/;
  const ignored = "code, pre, script, style, template, annotation, .katex, .md-search";
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim();
    if (latex.test(text) && !walker.currentNode.parentElement.closest(ignored))
      wrong.push(`LaTeX in the text: ${text}`);
  }
  if (latex.test(document.title)) wrong.push(`LaTeX in the title: ${document.title}`);
  document.querySelectorAll(".arithmatex").forEach(one => {
    if (!one.querySelector(".katex-html")) wrong.push(`not rendered: ${one.textContent}`);
  });
  const failed = '.katex-error, .katex [style*="#cc0000"], .katex [mathcolor="#cc0000"]';
  document.querySelectorAll(failed).forEach(one => wrong.push(`KaTeX: ${one.textContent}`));
  if (document.documentElement.scrollWidth > window.innerWidth)
    wrong.push(`wider than a window of ${window.innerWidth} pixels`);
  return wrong;
}
"""


class Names(HTMLParser):
    """The anchors of a page, and where its links and parts lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.parts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {name for key in ("id", "name") if (name := given.get(key))}
        led = [name for key in ("href", "src") if (name := given.get(key)) is not None]
        if tag == "a":
            self.links += led
        elif tag in ("link", "img", "script", "source", "iframe"):
            self.parts += led


def links(site: Path) -> list[str]:
    """Links and anchors that lead nowhere, and parts of pages that are on other hosts."""
    pages = {path: Names(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    wrong = []
    for path, names in pages.items():
        where = path.relative_to(site).as_posix()
        for link in names.parts:
            if urlsplit(link).netloc:
                wrong.append(f"{where}: a part of the page is elsewhere: {link}")
        for link in names.links + names.parts:
            if urlsplit(link).scheme or urlsplit(link).netloc:
                continue
            led = urlsplit(urljoin(f"/{where}", link))
            file = site / unquote(led.path).lstrip("/")
            if file.is_dir():
                file /= "index.html"
            if not file.is_file():
                wrong.append(f"{where}: leads nowhere: {link}")
            elif led.fragment and file in pages:
                if unquote(led.fragment) not in pages[file].anchors | {"__top"}:
                    wrong.append(f"{where}: no such anchor: {link}")
    return wrong


def searches(site: Path) -> list[str]:
    """Words for which the search does not show the page that explains them."""
    wrong = []
    with served(site) as address, browser() as started:
        for word, expected in SEARCHES.items():
            page = started.new_page()
            problems = watch(page)
            page.goto(f"{address}/?q={word}", wait_until="networkidle")
            shown = page.locator(".md-search-result__link")
            try:
                shown.first.wait_for(state="attached", timeout=20_000)
            except TimeoutError:
                wrong.append(f"the search finds nothing for {word!r}")
            found = [link.get_attribute("href") or "" for link in shown.all()]
            if found and not any(urlsplit(link).path == f"/{expected}" for link in found):
                wrong.append(f"the search does not show {expected} for {word!r}, but {found}")
            wrong += [f"search for {word!r}: {problem}" for problem in problems]
            page.close()
    return wrong


def pages(site: Path) -> list[str]:
    """What a browser finds wrong with the pages: bright in a wide window, dark in a narrow one."""
    wrong = []
    names = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    with served(site) as address, browser() as started:
        for scheme, width in (("light", 1280), ("dark", 390)):
            window: dict[str, Any] = {"width": width, "height": 800}
            options: dict[str, Any] = {"color_scheme": scheme, "viewport": window}
            context = started.new_context(**options)
            for name in names:
                page = context.new_page()
                problems = watch(page)
                page.goto(f"{address}/{name.removesuffix('index.html')}")
                problems += page.evaluate(READ)
                wrong += [f"{name} ({scheme}): {problem}" for problem in dict.fromkeys(problems)]
                page.close()
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("site", nargs="?", type=Path, help="a built site; built if left out")
    site = parser.parse_args().site
    try:
        chromium()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as made:
        if site is None:
            site = Path(made, "site")
            command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"]
            built = subprocess.run([*command, "--site-dir", site], cwd=ROOT).returncode
            if built != 0:
                return built
        if not (site / "index.html").is_file():
            print(f"{site}: no site is there; `mkdocs build` makes one", file=sys.stderr)
            return 1
        site = site.resolve()
        wrong = links(site) + pages(site) + searches(site)
        count = len(list(site.rglob("*.html")))
    for problem in wrong:
        print(problem, file=sys.stderr)
    print(f"{count} pages read, {len(wrong)} problems found")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
