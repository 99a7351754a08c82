"""A Chromium that is installed here, without a window."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
PATIENCE = 45_000  # milliseconds: a busy machine is no failure
sync_api.expect.set_options(timeout=PATIENCE)

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
APPS = (
    "Google Chrome.app/Contents/MacOS/Google Chrome",
    "Chromium.app/Contents/MacOS/Chromium",
    "Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)


def find_chromium(playwright) -> str | None:
    """Where a browser of Chromium's kind is: $CHROMIUM, Playwright's own, the system's."""
    found = [os.environ.get("CHROMIUM"), playwright.chromium.executable_path]
    found += [shutil.which(name) for name in NAMES]
    found += [f"/Applications/{app}" for app in APPS]
    return next((path for path in found if path and Path(path).exists()), None)


@contextmanager
def chromium() -> Iterator:
    """A browser; the test is skipped where there is none."""
    with sync_api.sync_playwright() as playwright:
        path = find_chromium(playwright)
        if not path:
            pytest.skip("no Chromium is installed (apt-get install chromium, or Google Chrome)")
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


class Visit:
    """One profile of the browser, and all that its pages asked for and complained about.

    Attributes:
        asked: the addresses of all requests, whatever became of them.
        complaints: of the console, and exceptions that nothing caught.
    """

    def __init__(self, browser, url: str, **context) -> None:
        self.url = url
        self.asked: list[str] = []
        self.complaints: list[str] = []
        given = {"viewport": {"width": 1280, "height": 800}, "reduced_motion": "reduce", **context}
        self.context = browser.new_context(**given)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        self.context.on("request", lambda request: self.asked.append(request.url))

    def open(self, path: str = "/"):
        """A page, ready to be used."""
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda m: m.type in ("error", "warning") and self.complain(m.text))
        page.on("pageerror", lambda error: self.complain(str(error)))
        page.goto(self.url + path)
        page.wait_for_selector("#server[data-up]", state="attached")
        return page

    def complain(self, text: str) -> None:
        self.complaints.append(text)

    def strangers(self) -> list[str]:
        """Requests to any other server than the page's own."""
        own = urlsplit(self.url).netloc
        local = ("blob", "data")
        parts = [urlsplit(url) for url in self.asked]
        return [part.geturl() for part in parts if part.scheme not in local and part.netloc != own]

    def close(self) -> None:
        self.context.close()
