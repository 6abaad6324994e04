"""The report in a real browser: toggles, filter, order, dialog, keyboard, dark mode, narrow screens."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.jobs.test_report import HOSTILE_CLASS, HOSTILE_ID, make_report, write_example
from tests.support.browser import faultless_page

PAINTED = """canvas => {
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let painted = 0;
  for (let at = 3; at < pixels.length; at += 4) painted += pixels[at] > 0;
  return painted;
}"""
READY = f"Array.from(document.querySelectorAll('.card canvas')).every({PAINTED})"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    labels, images = write_example(folder)
    return make_report(labels, "--images", str(images), "--pictures", "8")


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    with faultless_page(browser, report) as opened:
        opened.wait_for_function(READY)
        yield opened


def painted(page: Page) -> list[int]:
    """The number of pixels that each image's overlay covers."""
    return [canvas.evaluate(PAINTED) for canvas in page.locator(".card canvas").all()]


def test_images_have_texts_and_hostile_names_are_only_names(page: Page) -> None:
    assert page.locator(".card").count() == 8
    assert all(page.locator(".card img").evaluate_all("images => images.map(i => i.alt && i.naturalWidth > 0)"))
    assert page.locator("b").count() == 0
    assert page.locator(".chip", has_text=HOSTILE_CLASS).count() == 1
    assert page.locator(f"xpath=//bdi[@title={HOSTILE_ID!r}]").count() <= 1
    assert page.locator("img[src=x]").count() == 0


def test_a_class_is_toggled_by_click_and_by_keyboard(page: Page) -> None:
    chip = page.locator(".legend .chip", has_text="sky").first
    before = painted(page)
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    without = painted(page)
    assert all(less <= more for less, more in zip(without, before, strict=True))
    assert sum(without) < sum(before)
    chip.focus()
    for key in ("Space", "Enter"):
        page.keyboard.press(key)
        expected, pressed = (before, "true") if key == "Space" else (without, "false")
        assert (painted(page), chip.get_attribute("aria-pressed")) == (expected, pressed)
    page.get_by_role("button", name="Hide all").click()
    assert sum(painted(page)) == 0
    page.get_by_role("button", name="Show all").click()
    assert painted(page) == before


def test_the_class_filter_and_the_order(page: Page) -> None:
    page.locator("#class").select_option(label="tree")
    shown = page.locator(".card:visible")
    assert 0 < shown.count() < 8
    assert f"{shown.count()} of 8 images" in page.locator("#count").inner_text()
    scores = [float(text) for text in page.locator(".card:visible .chosen").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    page.locator("#order").select_option("1")
    assert [float(text) for text in page.locator(".card:visible .chosen").all_inner_texts()] == scores[::-1]


def test_an_image_opens_by_enter_and_closes_by_escape(page: Page) -> None:
    first = page.locator(".card .image").first
    first.focus()
    page.keyboard.press("Enter")
    viewer = page.locator("#viewer")
    assert viewer.is_visible()
    name = page.locator("#viewer-name").inner_text()
    assert page.locator("#viewer tbody tr").count() > 1
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-name").inner_text() != name
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert first.evaluate("button => button === document.activeElement")


def test_charts_have_labels_with_their_numbers(page: Page) -> None:
    assert "12 ok" in str(page.locator(".statuses").get_attribute("aria-label"))
    kinds = page.locator(".failures tbody tr")
    assert kinds.locator("th").all_inner_texts() == ["truncated", "empty"]
    page.locator("#scores-class").select_option(label="sky")
    assert "Scores of sky, found" in str(page.locator("#found").get_attribute("aria-label"))
    assert page.locator("#found i").count() == page.locator("#others i").count() > 10


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_the_window_and_dark_mode_is_dark(width: int, browser: Browser, report: Path) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        page.goto(report.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        context.close()
    assert grounds["light"] != grounds["dark"]
