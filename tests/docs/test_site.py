"""How the site is made and checked: formulas, notebooks, blocks of pages, what pages show."""

import json

import pytest

page_blocks = pytest.importorskip("page_blocks", reason="only in the repository")

PAGE = "<!doctype html><html lang=en><title>t</title><link rel=icon href=there.svg><body>{}"
PICTURE = "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"
# What a page may be wrong in, and what is said of it; the first of them are found in its source.
FAULTS = {
    "<a href=other.html>x</a>": "leads nowhere: other.html",
    "<a href=#other>x</a>": "no such anchor: #other",
    "<img alt=x src=other.png>": "leads nowhere: other.png",
    "<script src=https://example.org/x.js></script>": "elsewhere: https://example.org/x.js",
    "<img alt=x src=notes.txt>": "picture does not show",
    "<img src=there.svg>": "picture without a text",
    "<p>the rate $\\omega$</p>": "LaTeX in the text: the rate $\\omega$",
    "<p>the rate \\(a\\)</p>": "LaTeX in the text",
    "<details><p>e^{-t}</p></details>": "LaTeX in the text: e^{-t}",
    "<span class=arithmatex>x</span>": "not rendered: x",
    "<span class=katex><span style='color:#cc0000'>x</span></span>": "KaTeX: x",
    "<script>console.error('no')</script>": "console: no",
    "<script>throw new Error('no')</script>": "exception: no",
    "<script>fetch('other.json').catch(() => 0)</script>": "status 404",
    "<script>fetch('https://example.org/').catch(() => 0)</script>": "asks another host",
    "<div style='width:3000px'>x</div>": "wider than a window",
}
RIGHT = (
    "<h1 id=here>x</h1><a href=#here>x</a><a href=there.svg>x</a><a href=https://example.org>x</a>"
    "<img alt=x src=there.svg><code>$\\omega$</code><p>costs 5$, or 6$</p>"
)


def test_a_block_without_an_import_of_memjax_goes_on():
    blocks = ["import memjax as mj", "x = 1", "from memjax import cli", "import memjaxes"]
    text = "\n".join(f"text\n\n```python\n{block}\n```\n" for block in blocks)
    found = list(page_blocks.scripts(text))
    assert [line for line, _ in found] == [4, 16]
    # Each block stands on its own line of the page.
    lines = text.splitlines()
    for start, code in found:
        for number, line in enumerate(code.splitlines(), start=start - 1):
            assert line in ("", lines[number])


def test_a_block_that_fails_is_named(tmp_path, capfd):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nprint(x / 0)\n```\n", encoding="utf-8")
    assert page_blocks.main([tmp_path]) == 1
    error = capfd.readouterr().err
    assert "line 6, in <module>" in error and f"{page}:2: this block exited" in error


def test_pages_without_blocks_are_an_error(tmp_path, capsys):
    (tmp_path / "page.md").write_text("text", encoding="utf-8")
    assert page_blocks.main([tmp_path]) == 1
    assert "no Python blocks" in capsys.readouterr().err


def cell(kind, source, *outputs):
    return {"cell_type": kind, "source": source, "outputs": outputs}


def test_a_notebook_becomes_a_page(tmp_path):
    site_notebooks = pytest.importorskip("site_notebooks", reason="needs the extra `docs`")
    table = '<style scoped>a</style>\n<table border="1" class="dataframe">1</table>'
    shown = [
        {"output_type": "stream", "text": ["one\n", "```\n"]},
        {"output_type": "execute_result", "data": {"text/plain": "<Figure>", "image/png": "eA=="}},
        {"output_type": "display_data", "data": {"text/plain": "a", "text/html": table}},
        {"output_type": "execute_result", "data": {"text/plain": ["1.0"]}},
    ]
    cells = [cell("markdown", "# Title\n\nText $x$."), cell("code", ["a = 1\n", "a"], *shown)]
    path = tmp_path / "name.ipynb"
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    page = site_notebooks.Page(path)
    assert page.markdown.startswith("# Title\n\n*An executed notebook: [name.ipynb](name.ipynb)")
    assert "```python\na = 1\na\n```" in page.markdown
    assert "```` { .text .no-copy .output }\none\n```\n````" in page.markdown
    assert "![Title: figure](name-1.png)" in page.markdown and "<Figure>" not in page.markdown
    assert page.figures == {"name-1.png": b"x"}
    assert ["<table>1</table>" in html and "style" not in html for html in page.html] == [True]
    assert page.markdown.endswith("1.0\n```")

    cells[1]["outputs"] = [{"output_type": "error", "evalue": "no"}]
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    with pytest.raises(Exception, match="name.ipynb shows an error: no"):
        site_notebooks.Page(path)


@pytest.mark.browser
def test_formulas_are_rendered_or_named(caplog):
    site_maths = pytest.importorskip("site_maths", reason="needs the extra `docs`")
    site_maths.fetch()
    formulas = [{"tex": "e^{-t} < 1", "display": False}, {"tex": r"\sum_j a", "display": True}]
    inline, display = site_maths.rendered(formulas, "page.md")
    assert inline.startswith('<span class="katex"><span class="katex-mathml">')
    assert display.startswith('<span class="katex-display">')
    for html in (inline, display):
        assert html.count("<bdi") == html.count("</bdi>") == 1
        assert html.count("<span") == html.count("</span>")
    assert caplog.records == []
    (html,) = site_maths.rendered([{"tex": r"\nosuch{<}", "display": False}], "page.md")
    assert html == r"\nosuch{&lt;}"
    assert "page.md: KaTeX parse error" in caplog.text and r"\\nosuch" in caplog.text


@pytest.mark.browser
def test_each_fault_of_a_page_is_found_and_nothing_else(tmp_path):
    check_site = pytest.importorskip("check_site", reason="needs the extra `browser`")
    (tmp_path / "there.svg").write_text(PICTURE, encoding="utf-8")
    (tmp_path / "notes.txt").write_text("text", encoding="utf-8")
    names = {}
    for number, body in enumerate([RIGHT, *FAULTS]):
        name = f"page{number}.html"
        names[body] = name
        (tmp_path / name).write_text(PAGE.format(body), encoding="utf-8")
    wrong = check_site.links(tmp_path) + check_site.pages(tmp_path)
    assert [line for line in wrong if line.startswith(f"{names[RIGHT]}")] == []
    for body, said in FAULTS.items():
        found = [line for line in wrong if line.startswith(names[body])]
        assert any(said in line for line in found), (body, found)
