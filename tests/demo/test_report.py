"""The demo's page in a real browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, sync_playwright

from demo.metrics import Figures
from demo.report import LEGEND, Example, write_report
from demo.world.names import NAMES
from demo.world.scene import draw

CHROMIUM = shutil.which("chromium")
QUIET_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FIGURES = Figures(miou=0.5, map=0.25, precision=0.75, recall=0.5, f1=0.6, pictures=3, seconds=12.0)


def write_example_page(folder: Path) -> Path:
    pictures = [draw(seed, 60, 80) for seed in range(3)]
    scores = np.linspace(0, 2.2, len(NAMES)).tolist()
    examples = [Example(seed, picture, picture.labels, scores) for seed, picture in enumerate(pictures)]
    write_report(folder / "report.html", FIGURES, [None, *np.linspace(0, 1, len(NAMES) - 1)], examples)
    return folder / "report.html"


def test_every_name_has_its_own_colour() -> None:
    assert tuple(LEGEND) == NAMES
    assert len(set(LEGEND.values())) == len(NAMES)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (Debian package chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_FLAGS)
        opened = browser.new_page()
        problems: list[str] = []
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        opened.on("request", lambda asked: problems.append(asked.url) if asked.url.startswith("http") else None)
        opened.goto(write_example_page(tmp_path).as_uri())
        yield opened
        browser.close()
        assert not problems, problems


def test_the_page_shows_figures_names_and_pictures(page: Page) -> None:
    assert page.locator(".figures dd").all_inner_texts() == ["50.0 %", "25.0 %", "3", "12"]
    assert page.locator(".names li").count() == len(NAMES)
    assert page.locator(".names li", has_text="not drawn").count() == 1
    decoded = "images => images.every(image => image.complete && image.naturalWidth === 80)"
    assert page.locator("figure").count() == 3
    assert page.locator(".layers img").evaluate_all(decoded)
    captions = page.locator(".layers img:first-child").evaluate_all("images => images.map(image => image.alt)")
    assert captions == [draw(seed, 60, 80).caption for seed in range(3)]


def test_labels_truth_and_picture_can_be_chosen_by_click_and_by_keyboard(page: Page) -> None:
    labels, truth = page.locator(".overlay.labels").first, page.locator(".overlay.truth").first
    assert (labels.is_visible(), truth.is_visible()) == (True, False)
    page.get_by_label("truth").click()
    assert (labels.is_visible(), truth.is_visible()) == (False, True)
    page.get_by_label("truth").press("ArrowLeft")
    assert (labels.is_visible(), truth.is_visible()) == (True, False)
    page.get_by_label("picture", exact=True).check()
    assert (labels.is_visible(), truth.is_visible()) == (False, False)


def test_a_caption_cannot_bring_markup_into_the_page(tmp_path: Path) -> None:
    picture = draw(0, 60, 80)
    hostile = type(picture)(picture.image, picture.labels, picture.paints, '"><script>alert(1)</script>')
    example = Example(0, hostile, picture.labels, [0.5] * len(NAMES))
    write_report(tmp_path / "report.html", FIGURES, [0.5] * len(NAMES), [example])
    assert "<script>alert" not in (tmp_path / "report.html").read_text()
