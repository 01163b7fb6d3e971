import dataclasses

from ..installation import doctor
from ._output import show


@dataclasses.dataclass(frozen=True)
class Doctor:
    """Say what memjax runs on here, and whether it gives right answers.

    Shows versions, devices, float64, the cache of compiled programs, threads and environment
    variables, and computes three answers that are known without memjax. The exit status is 1 if
    something is wrong; the last lines say what, and what to do.

    Example: memjax doctor --no-self-test
    """

    self_test: bool = True
    """Compute the known answers; up to ten seconds the first time."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        found = doctor(self_test=self.self_test)
        show(self.json, found.to_dict(), str(found))
        return 0 if found.sound else 1
