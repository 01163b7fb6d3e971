"""Reports: what a sweep has measured as one page for a browser."""

from ._report import REPORT as REPORT
from ._report import write_report as write_report
from ._tables import count_outcomes as count_outcomes
from ._tables import Table as Table
from ._tables import tabulate_fit as tabulate_fit
from ._tables import tabulate_times as tabulate_times
