"""The commands: their names, what each is for, and where it is.

To import a command is to import JAX, which takes a second: the module of a command is imported
when it is asked for.
"""

import dataclasses
import importlib
from typing import Any


@dataclasses.dataclass(frozen=True)
class Command:
    """A command that may not have been imported.

    **Attributes:**

    - `summary`: what it is for, as the first paragraph of the docstring of its class.
    - `place`: the module in this folder and the class in it, as `_module:Class`.
    """

    summary: str
    place: str

    def load(self) -> type[Any]:
        """The class, whose fields are the options and whose `run` returns the exit status."""
        module, _, name = self.place.partition(":")
        return getattr(importlib.import_module(f".{module}", __package__), name)


COMMANDS = {
    "sweep": Command(
        "Measure how long training sits on its plateau, swept over memory, and fit the law.",
        "_sweep:Sweep",
    ),
    "plateau": Command("Measure one plateau from explicit initial values.", "_plateaus:Plateau"),
    "fit": Command(
        "Fit log time against the memory, or another axis, to the dataset of a sweep.",
        "_plateaus:Fit",
    ),
    "plot": Command("Draw a figure from the dataset of a sweep.", "_plateaus:Plot"),
    "reproduce": Command(
        "Measure a published result again, and say whether what is found agrees.",
        "_reproduce:Reproduce",
    ),
    "diagnose": Command(
        "Say whether training a model will sit on a plateau, and try what may help.",
        "_diagnose:Diagnose",
    ),
    "approximate": Command(
        "Say how many neurons a measured impulse response needs, and find the best weights.",
        "_approximate:Approximate",
    ),
    "status": Command(
        "Say how far a sweep is, from another process or machine, without disturbing it.",
        "_status:Status",
    ),
    "log": Command(
        "Find the plateaus in the log of a training of your own, and say whether it has left them.",
        "_log:Log",
    ),
    "report": Command(
        "Write a report of a sweep: one HTML file for a browser, which needs no network.",
        "_report:Report",
    ),
    "doctor": Command(
        "Say what memjax runs on here, and whether it gives right answers.", "_doctor:Doctor"
    ),
}
