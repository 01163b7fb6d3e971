"""What the pages say of published results is what is stored, and what the commands print."""

import dataclasses
import re

import pytest

import memjax as mj
from verdict_tables import (
    COUNTS,
    counts,
    filled,
    numbers,
    PAGE,
    PLACE,
    printed,
    prose,
    ROOT,
    ROW,
    STORED,
    stored,
)

NAMES = sorted(mj.REPRODUCTIONS)
TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS = prose(TEXT)


def readme() -> dict[str, str]:
    """What the README says about each reproduction: from its command up to the next one."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Published results", 1)[1].split("\n## ", 1)[0]
    section = re.sub(r"\]\([^)]*\)", "]", section)
    parts = re.split(r"`memjax reproduce ([\w-]+)`", section)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_reproduction_has_stored_verdicts_a_row_and_a_section():
    assert {path.stem for path in STORED.glob("*.json")} == set(NAMES)
    rows = [row for row in ROW.finditer(TEXT) if COUNTS.search(row[0])]
    assert sorted(row[1] for row in rows) == sorted(mj.REPRODUCTIONS)
    assert SECTIONS.keys() == mj.REPRODUCTIONS.keys()
    assert set(NAMES) <= set(PLACE.findall(TEXT))


@pytest.mark.parametrize("name", NAMES)
def test_stored_verdicts_are_verdicts(name):
    verdicts = [mj.Verdict(**record) for record in stored(name)]
    assert verdicts
    for verdict in verdicts:
        assert verdict.published and verdict.found
        assert verdict.agrees in (True, False, None)


def test_the_tables_of_the_page_are_those_of_the_stored_verdicts():
    assert filled(TEXT) == TEXT, "run tests/docs/verdict_tables.py"


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_section_is_printed_by_its_command(name):
    assert numbers(SECTIONS[name]) - printed(name) == set()


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_the_readme_is_printed_by_its_command(name):
    assert numbers(readme().get(name, "")) - printed(name) == set()


def test_a_number_that_is_not_stored_and_a_changed_table_are_seen():
    assert numbers("as $m^{-0.83}$ at 10,000 updates, 1.5e-08 of L21's $c_0$, c0 = 5.") == {
        0.83, 10_000.0, 1.5e-8, 5.0,
    }  # fmt: skip
    name = NAMES[0]
    section = SECTIONS[name] + " 12.3456"
    assert numbers(section) - printed(name) == {12.3456}
    first = stored(name)[0]["found"]
    at = TEXT.index(f"<!-- verdicts: {name} -->")
    changed = TEXT[:at] + TEXT[at:].replace("| yes |", "| no |", 1)
    assert changed != TEXT and filled(changed) == TEXT
    assert first
    row = f"| `{name}` |"
    wrong = TEXT.replace(f"| {counts(name)} | {row[2:]}", f"| 99 / 0 / 0 | {row[2:]}", 1)
    assert wrong != TEXT and filled(wrong) == TEXT


CHEAP = ("plateau-width",)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEAP)
def test_a_new_run_finds_what_is_stored(name):
    _, verdicts = mj.reproduce(name, progress=False)
    found = [dataclasses.asdict(verdict) for verdict in verdicts]
    for new, old in zip(found, stored(name), strict=True):
        assert (new["published"], new["agrees"]) == (old["published"], old["agrees"])
        assert re.sub(r"[\d.e+-]+", "#", new["found"]) == re.sub(r"[\d.e+-]+", "#", old["found"])
        values = [
            [float(x) for x in re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", record["found"])]
            for record in (new, old)
        ]
        assert values[0] == pytest.approx(values[1], rel=0.02)
