"""A page in Firefox, with everything that goes wrong in it. The driver is Mozilla's own and needs no geckodriver."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from marionette_driver.by import By
from marionette_driver.marionette import Marionette, WebElement
from marionette_driver.wait import Wait

PROBLEMS = """return Services.console.getMessageArray()
  .filter(said => said instanceof Ci.nsIScriptError && said.sourceName.startsWith("file:"))
  .map(said => `${said.sourceName}:${said.lineNumber}: ${said.errorMessage}`)"""


class FirefoxPage:
    """The page in a Firefox. What it waits for comes within five seconds, or the test fails."""

    def __init__(self, driver: Marionette, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads

    def all(self, selector: str) -> list[WebElement]:
        found: list[WebElement] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def value(self, expression: str) -> object:
        """The value of JavaScript, which sees the document and none of the page's variables."""
        return self.driver.execute_script(f"return {expression}")

    def expect(self, expression: str, value: object) -> None:
        Wait(self.driver, timeout=5).until(
            lambda _: self.value(expression) == value, message=f"{expression} is {self.value(expression)}, not {value}"
        )

    def press(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        actions = self.driver.actions.sequence("key", "keyboard")
        for key in keys:
            actions.key_down(key).key_up(key)
        actions.perform()

    def point(self, element: WebElement, x: float, y: float, button: str | None = None) -> None:
        """Move the mouse to a place, as shares of an element's box from 0 to 1, then ``press`` or ``release`` it."""
        box = element.rect
        actions = self.driver.actions.sequence("pointer", "mouse", {"pointerType": "mouse"})
        move = actions.pointer_move(round((x - 0.5) * box["width"]), round((y - 0.5) * box["height"]), origin=element)
        if button is not None:
            move = move.pointer_down() if button == "press" else move.pointer_up()
        move.perform()

    def downloaded(self, name: str) -> str:
        """The text of a file that the page saves, once it is complete."""
        file = self.downloads / name
        Wait(self.driver, timeout=5).until(lambda _: file.is_file() and not list(self.downloads.glob("*.part")))
        return file.read_bytes().decode()


@contextmanager
def firefox(downloads: Path) -> Iterator[FirefoxPage]:
    """The machine's Firefox, which saves files in a folder; without one the test is skipped."""
    executable = shutil.which("firefox-esr") or shutil.which("firefox")
    if executable is None:
        pytest.skip("Firefox is not installed (Debian package firefox-esr)")
    preferences = {
        "browser.download.dir": str(downloads), "browser.download.folderList": 2,
        "browser.download.alwaysOpenPanel": False,  # it would take the keys that follow
    }  # fmt: skip
    log = str(downloads / "firefox.log")
    driver = Marionette(bin=executable, headless=True, port=0, prefs=preferences, gecko_log=log)
    driver.start_session()
    try:
        yield FirefoxPage(driver, downloads)
    finally:
        driver.quit()


@contextmanager
def faultless_firefox_page(page: FirefoxPage, file: Path) -> Iterator[FirefoxPage]:
    """A file in the tab; fails on errors of its scripts and on what its security policy had to stop."""
    with page.driver.using_context("chrome"):
        page.driver.execute_script("Services.console.reset()")
    page.driver.navigate("about:blank")
    page.driver.navigate(file.as_uri())
    yield page
    with page.driver.using_context("chrome"):
        problems = page.driver.execute_script(PROBLEMS)
    assert not problems, problems
