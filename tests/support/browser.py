"""A page in Chromium, with everything that goes wrong in it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

QUIET_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's Chromium; without one the test is skipped."""
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("Chromium is not installed (Debian package chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=QUIET_FLAGS)
        yield browser
        browser.close()


@contextmanager
def faultless_page(browser: Browser, file: Path) -> Iterator[Page]:
    """A file in a tab; fails on errors of its scripts, on requests to other machines and on dialogs."""
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda asked: problems.append(asked.url) if asked.url.startswith("http") else None)
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.goto(file.as_uri())
    yield page
    page.close()
    assert not problems, problems
