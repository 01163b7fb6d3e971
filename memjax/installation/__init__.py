"""The installation: what memjax runs on here, and whether it gives right answers."""

from ._doctor import doctor as doctor
from ._doctor import Installation as Installation
from ._environment import check_devices as check_devices
from ._environment import check_figures as check_figures
