"""The report in Firefox, from a file. `test_page` looks at more of it in Chromium."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from marionette_driver.keys import Keys

from demo.world.scene import draw
from schemas.image_ids import format_image_ids
from tests.jobs.page.test_comparison import CHANGED, write_two_runs
from tests.jobs.page.test_page import LINE_BREAK, has, write_open_report
from tests.jobs.test_report import CLASS_NAMES, HEIGHT, HOSTILE_ID, IMAGES, WIDTH, make_report
from tests.support.firefox import FirefoxPage, faultless_firefox_page

SHOWN = "[...document.querySelectorAll('.card:not([hidden]) .name')].map(name => name.title)"
PAINTED = """[...document.querySelectorAll('.card canvas')].reduce((sum, canvas) => {
  const pixels = canvas.width ? canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data : [];
  return sum + pixels.filter((value, at) => at % 4 === 3 && value > 0).length;
}, 0)"""
FOCUS = "document.activeElement"


@pytest.fixture(scope="module")
def report_and_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    return write_open_report(tmp_path_factory.mktemp("report"))


@pytest.fixture
def rows(report_and_rows: tuple[Path, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return report_and_rows[1]


@pytest.fixture
def page(firefox: FirefoxPage, report_and_rows: tuple[Path, list[dict[str, Any]]]) -> Iterator[FirefoxPage]:
    """The page in a window so high that every image is on it."""
    firefox.driver.set_window_rect(width=1280, height=3000)
    with faultless_firefox_page(firefox, report_and_rows[0]) as opened:
        yield opened


def all_pixels(rows: list[dict[str, Any]], least_probability: float = 0) -> int:
    return sum(entry["area"] for row in rows for entry in row["annotations"] if entry["score"] / 2 >= least_probability)


def test_queries_and_thresholds(page: FirefoxPage, rows: list[dict[str, Any]]) -> None:
    page.expect(PAINTED, all_pixels(rows))
    query = page.one("#query")
    query.send_keys("sky and not brick wall", Keys.ENTER)
    expected = sorted(row["image_id"] for row in rows if not has(row, "brick wall"))
    page.expect(f"{SHOWN}.sort()", expected)
    assert 0 < len(expected) < IMAGES
    query.clear()
    query.send_keys("sky and", Keys.ENTER)
    page.expect("document.getElementById('query-error').textContent", "A class is missing at the end.")
    query.clear()
    query.send_keys(Keys.ENTER)
    page.one("#presence").send_keys(Keys.ARROW_RIGHT)
    page.expect("document.getElementById('presence-value').textContent", "31 %")
    page.one("#presence").send_keys(*[Keys.ARROW_RIGHT] * 19)
    page.expect(PAINTED, all_pixels(rows, 0.5))
    page.one("#search").send_keys("break")
    page.expect(SHOWN, [LINE_BREAK])


def test_pointing_names_the_class_and_pressing_shows_the_original(
    page: FirefoxPage, rows: list[dict[str, Any]]
) -> None:
    page.expect(PAINTED, all_pixels(rows))
    page.one("#order").send_keys("f")  # by file name
    page.expect(SHOWN, sorted(row["image_id"] for row in rows))
    place = sorted(row["image_id"] for row in rows).index("004.jpg")
    layers = page.all(".card .layers")[place]
    truth = draw(4, HEIGHT, WIDTH).labels
    for column, line in [(5, 5), (40, 30), (20, 50)]:
        page.point(layers, (column + 0.5) / WIDTH, (line + 0.5) / HEIGHT)
        page.expect("document.querySelector('#tip bdi').textContent", CLASS_NAMES[truth[line, column] - 1])
    opacity = f"getComputedStyle(document.querySelectorAll('.card canvas')[{place}]).opacity"
    page.point(layers, 0.5, 0.5, "press")
    page.expect(opacity, "0")
    page.point(layers, 0.5, 0.5, "release")
    page.expect(opacity, "0.75")
    page.expect("document.getElementById('viewer').open", False)


def test_keys_alone_lead_through_the_images_and_mark_them(page: FirefoxPage) -> None:
    page.one(".skip").send_keys(Keys.ENTER)
    page.press(Keys.TAB)
    page.expect(f"{FOCUS}.className", "image")
    page.expect(f"getComputedStyle({FOCUS}.closest('.card')).outlineStyle", "solid")
    first, second, *_ = page.value(SHOWN)
    page.press(Keys.ENTER)
    page.expect("document.getElementById('viewer-name').textContent", first)
    page.press(Keys.ARROW_RIGHT, "m", Keys.ESCAPE)
    page.expect("document.getElementById('viewer').open", False)
    page.expect("document.querySelector('.card.marked .name')?.title", second)
    page.press(Keys.ARROW_LEFT, "m", "o")
    page.expect("document.querySelectorAll('.card.marked').length", 2)
    page.expect("document.getElementById('original').ariaPressed", "true")
    page.press("q", "o")
    page.expect("document.getElementById('query').value", "o")
    page.expect("document.getElementById('original').ariaPressed", "true")


def test_marks_survive_a_reload_and_are_downloaded(page: FirefoxPage) -> None:
    ids = [HOSTILE_ID, LINE_BREAK]
    page.value("localStorage.clear()")  # of the other tests' marks
    page.driver.refresh()
    for image_id in ids:
        page.all(".card .mark")[page.value(SHOWN).index(image_id)].click()
    page.expect("document.querySelectorAll('.card.marked').length", 2)
    page.driver.refresh()
    page.expect("document.querySelectorAll('.card.marked').length", 2)
    page.one("#download").click()
    assert page.downloaded("marks.txt") == format_image_ids(ids)


def test_two_runs_side_by_side(firefox: FirefoxPage, tmp_path: Path) -> None:
    one, other = write_two_runs(tmp_path)
    firefox.driver.set_window_rect(width=1280, height=6000)
    with faultless_firefox_page(firefox, make_report(one, "--compare", str(other))) as page:
        changed = f"{CHANGED:03}.jpg"
        page.expect(f"{SHOWN}[0]", changed)
        page.one("#only-differences").click()
        page.expect(PAINTED, HEIGHT * WIDTH // 2 * 2)


def test_the_page_fits_a_narrow_window(firefox: FirefoxPage, report_and_rows: tuple[Path, Any]) -> None:
    firefox.driver.set_window_rect(width=375, height=812)
    with faultless_firefox_page(firefox, report_and_rows[0]) as page:
        assert page.value("innerWidth") <= 500, "the narrowest window of Firefox"
        assert page.value("document.documentElement.scrollWidth <= innerWidth")
        page.expect("document.getElementById('settings').open", False)
