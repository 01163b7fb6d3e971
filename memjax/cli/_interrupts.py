"""Signals that end a command: within seconds, whatever the process is at."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Ctrl-C, what clusters send, and a terminal that is closed.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
# How long the command may take to end by itself, in seconds; compiling cannot be interrupted.
_GRACE = 3.0


class Interrupts:
    """What is known of the signal that ended a command.

    **Attributes:**

    - `status`: the exit status that it asks for, 0 without one.
    - `kept`: says what was kept of the work.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what was before a command."""
        self.status, self._said = 0, False
        self.kept: Callable[[], str] = lambda: "nothing was written."

    def say(self) -> None:
        """Say once on standard error that the command was interrupted."""
        if self._said:
            return
        self._said = True
        print(f"memjax: interrupted; {self.kept()}", file=sys.stderr, flush=True)

    def leave(self) -> None:
        """End the process at once, and its workers."""
        for worker in multiprocessing.active_children():
            worker.kill()
        sys.stdout.flush()
        os._exit(self.status)


# A process runs one command at a time.
INTERRUPTS = Interrupts()


@contextmanager
def ending() -> Iterator[None]:
    """Have signals raise `KeyboardInterrupt` in the command, and end the process where that does
    not within a few seconds: while it compiles, no Python runs in the main thread."""
    interrupts = INTERRUPTS
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        number = os.read(reader, 1)
        while number and number[0] not in numbers:
            number = os.read(reader, 1)
        if not number:
            return
        interrupts.status = 128 + number[0]
        timer = threading.Timer(_GRACE, give_up)
        timer.daemon = True
        timer.start()
        # A second signal does not wait.
        if os.read(reader, 1):
            give_up()

    def give_up() -> None:
        interrupts.say()
        interrupts.leave()

    def interrupt(number: int, frame: Any) -> None:
        interrupts.status = 128 + number
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    # What is ignored, as by nohup, stays so.
    numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="interrupts", daemon=True).start()
    try:
        yield
    finally:
        if not interrupts.status:
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(writer)
