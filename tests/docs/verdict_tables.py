"""The tables of `docs/reproductions.md`, made from the verdicts that are stored beside it.

    memjax reproduce NAME --out results/NAME
    cp results/NAME/verdicts.json docs/verdicts/NAME.json
    python tests/docs/verdict_tables.py

The page has a place for each table, between two comments, and in the first table a row for each
reproduction, in which the counts of verdicts are filled in.
"""

import json
import re
from pathlib import Path
from typing import Any

import memjax as mj

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reproductions.md"
STORED = ROOT / "docs" / "verdicts"

PLACE = re.compile(r"<!-- verdicts: ([\w-]+) -->\n.*?<!-- end of verdicts -->", re.DOTALL)
ROW = re.compile(r"^\| .*\| `([\w-]+)` \|.*$", re.MULTILINE)
COUNTS = re.compile(r"\| (?:\d+ / \d+ / \d+|not stored) \|")
WORDS = {True: "yes", False: "**no**", None: "not decided"}
# A number with its decimals and power of ten, and with commas between thousands, that is no part
# of a name such as L21 or c_0.
NUMBER = re.compile(r"(?<![A-Za-z\d._])(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


def stored(name: str) -> list[dict[str, Any]]:
    """The stored verdicts of a reproduction."""
    return json.loads((STORED / f"{name}.json").read_text(encoding="utf-8"))


def counts(name: str) -> str:
    """How many statements agree, do not, and are not decided."""
    if not (STORED / f"{name}.json").exists():
        return "not stored"
    found = [verdict["agrees"] for verdict in stored(name)]
    return " / ".join(str(found.count(answer)) for answer in WORDS)


def block(name: str) -> str:
    """The folded table of a reproduction, with the comments around it."""
    lines = [f"<!-- verdicts: {name} -->"]
    if (STORED / f"{name}.json").exists():
        agree, differ, undecided = counts(name).split(" / ")
        title = f"Published beside found: {agree} yes, {differ} no, {undecided} not decided"
        lines += [f'??? abstract "{title}"', ""]
        lines += ["    | published | found | agrees |", "    | --- | --- | --- |"]
        for verdict in stored(name):
            cells = [_escaped(verdict["published"]), _escaped(verdict["found"])]
            lines.append("    | " + " | ".join([*cells, WORDS[verdict["agrees"]]]) + " |")
        lines.append("")
    return "\n".join([*lines, "<!-- end of verdicts -->"])


def _escaped(text: str) -> str:
    """Plain text as Markdown that shows it as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|*_$`\[\]])", r"\\\1", text)


def filled(page: str) -> str:
    """The page with the tables and counts of what is stored."""
    page = PLACE.sub(lambda place: block(place[1]), page)
    return ROW.sub(lambda row: COUNTS.sub(f"| {counts(row[1])} |", row[0], count=1), page)


def numbers(text: str) -> set[float]:
    """The numbers in a text, without their signs."""
    return {float(number.replace(",", "")) for number in NUMBER.findall(text)}


def printed(name: str) -> set[float]:
    """The numbers that `memjax reproduce` prints."""
    one = mj.REPRODUCTIONS[name]
    said = [text for verdict in stored(name) for text in (verdict["published"], verdict["found"])]
    return numbers("\n".join([name, one.title, one.source, one.description, *said]))


def prose(page: str) -> dict[str, str]:
    """What the page says about each reproduction, in the section that names it in its heading;
    without the tables made here, and without paths of figures and links."""
    page = re.sub(r"\]\([^)]*\)", "]", PLACE.sub("", page))
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    named = {}
    for section in sections:
        heading, _, text = section.partition("\n")
        for name in re.findall(r"`([\w-]+)`", heading):
            named[name] = text
    return named


def main() -> None:
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
