"""Below each figure of a published result stands what is drawn in it."""

import inspect
import re
from pathlib import Path

import memjax as mj

PAGE = Path(__file__).parents[2] / "docs" / "reproductions.md"
CAPTION = re.compile(r"\(figures/(\w+)\.png\)\n\n\*\*Figure\.\*\* (.*?)\n\n", re.DOTALL)


def test_the_captions_are_those_of_the_functions_that_draw():
    captions = {name: " ".join(text.split()) for name, text in CAPTION.findall(PAGE.read_text())}
    for name, reproduction in mj.REPRODUCTIONS.items():
        caption = " ".join((inspect.getdoc(reproduction.plot) or "").split())
        assert captions.pop(name.replace("-", "_")) == caption
    assert not captions
