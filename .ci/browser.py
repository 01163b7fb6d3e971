"""A headless Chromium without a network, for checks of pages; `.ci/chromium` sets it up."""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HOST = "127.0.0.1"


def chromium() -> str:
    """The browser: `$MEMJAX_CHROMIUM`, or the first that is on the path."""
    named = os.environ.get("MEMJAX_CHROMIUM")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        looked = (
            f"`MEMJAX_CHROMIUM` must name a browser, got {named}"
            if named
            else (f"no browser is there: none of {', '.join(NAMES)} is on the path")
        )
        raise FileNotFoundError(f"{looked}; .ci/chromium sets one up")
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # No host but this one has an address, whatever a page or the browser itself asks for.
        rules = f"MAP * ~NOTFOUND, EXCLUDE {HOST}"
        launched = playwright.chromium.launch(
            executable_path=chromium(),
            args=["--no-sandbox", "--disable-gpu", f"--host-resolver-rules={rules}"],
        )
        try:
            yield launched
        finally:
            launched.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which a folder is served, on this machine only."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer((HOST, 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def watch(page: Page) -> list[str]:
    """A list to which everything is added that goes wrong on a page: messages on the console,
    exceptions, requests that fail, and requests to other hosts."""
    problems: list[str] = []

    def asked(url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob", "file") and parts.hostname != HOST:
            problems.append(f"asks another host: {url}")

    page.on("request", lambda request: asked(request.url))
    page.on("requestfailed", lambda request: problems.append(f"request failed: {request.url}"))
    page.on(
        "response",
        lambda response: (
            problems.append(f"status {response.status}: {response.url}")
            if response.status >= 400
            else None
        ),
    )
    page.on("pageerror", lambda error: problems.append(f"exception: {error}"))
    page.on(
        "console",
        lambda message: (
            problems.append(f"console: {message.text}")
            if message.type in ("error", "warning")
            else None
        ),
    )
    return problems
