"""The API pages name what is public, and all of it; docstrings say what is taken and given."""

import ast
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memjax as mj
from memjax.cli import COMMANDS

ROOT = Path(__file__).parents[2]
REFERENCE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)
LINK = re.compile(r"\[`(memjax[\w.]*)`\]\[\]")
SECTION = re.compile(r"^\*\*(\w+):\*\*", re.MULTILINE)
SECTIONS = ["Arguments", "Attributes", "Returns", "Raises"]


def public() -> dict[str, Any]:
    names = {f"memjax.{name}": getattr(mj, name) for name in dir(mj) if not name.startswith("_")}
    figures = {f"memjax.viz.{name}": getattr(mj.viz, name) for name in dir(mj.viz)}
    figures = {name: value for name, value in figures.items() if ".plot_" in name}
    return {name: value for name, value in names.items() if not inspect.ismodule(value)} | figures


PUBLIC = public()
CALLABLE = {name: value for name, value in PUBLIC.items() if callable(value)}


def documented() -> list[str]:
    pages = sorted((ROOT / "docs").glob("**/*.md"))
    return [name for page in pages for name in REFERENCE.findall(page.read_text("utf-8"))]


def test_every_public_name_has_its_place_in_the_documentation():
    assert sorted(PUBLIC.keys() - set(documented())) == []


def test_what_the_documentation_names_is_there_and_named_once():
    names = documented()
    assert len(names) == len(set(names))
    for name in names:
        pkgutil.resolve_name(name)


def test_the_page_of_the_command_line_shows_the_help_of_every_command():
    text = (ROOT / "docs" / "api" / "cli.md").read_text("utf-8")
    shown = re.findall(r"^<!-- help: (\w+) -->$", text, re.MULTILINE)
    assert sorted(shown) == sorted(["memjax", *COMMANDS])
    assert re.findall(r"^## memjax (\w+)$", text, re.MULTILINE) == shown[1:]


def test_links_in_docstrings_and_pages_lead_somewhere():
    texts = [inspect.getdoc(value) or "" for value in CALLABLE.values()]
    texts += [page.read_text("utf-8") for page in (ROOT / "docs").glob("**/*.md")]
    linked = {name for text in texts for name in LINK.findall(text)}
    known = set(documented())
    assert {
        name for name in linked if name not in known and name.rpartition(".")[0] not in known
    } == set()


def fields_with_docstrings(cls: type) -> Iterator[str]:
    """Those of a specification, whose options on the command line show them."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body
    for field, text in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            yield field.target.id


def named(doc: str, section: str) -> set[str]:
    """What the entries of a section of a docstring are of."""
    pattern = rf"^\*\*{section}:\*\*(.*?)(?=^\*\*\w+:\*\*|\Z)"
    found = re.search(pattern, doc, re.DOTALL | re.MULTILINE)
    heads = re.findall(r"^- (`[^:]*):", found[1], re.MULTILINE) if found else []
    return {name for head in heads for name in re.findall(r"`\*{0,2}(\w+)`", head)}


def judged() -> Iterator[str]:
    for name, value in CALLABLE.items():
        abstract = inspect.isabstract(value) or ".Abstract" in name
        if not abstract and not (inspect.isclass(value) and issubclass(value, mj.RESULTS)):
            yield name


@pytest.mark.parametrize("name", list(judged()))
def test_docstrings_say_what_is_taken_and_given(name):
    value = PUBLIC[name]
    doc = inspect.getdoc(value)
    assert doc
    signature = inspect.signature(value)
    said = named(doc, "Arguments")
    if inspect.isclass(value):
        # What memjax makes itself has attributes instead.
        said |= named(doc, "Attributes") | set(fields_with_docstrings(value))
        assert not (vars(value).get("__init__") and (value.__init__.__doc__ or "").startswith("**"))
    elif signature.return_annotation is not None:
        assert "Returns" in SECTION.findall(doc)
    assert signature.parameters.keys() - said == set()


@pytest.mark.parametrize("name", CALLABLE)
def test_docstrings_have_one_dialect(name):
    doc = inspect.getdoc(PUBLIC[name]) or ""
    summary = doc.split("\n\n")[0]
    assert summary.rstrip().endswith((".", ":", "?", "$")), summary
    sections = SECTION.findall(doc)
    assert sections == sorted(sections, key=SECTIONS.index)
    assert not re.search(r"^(Args|Arguments|Parameters|Returns|Raises):?$", doc, re.MULTILINE)
