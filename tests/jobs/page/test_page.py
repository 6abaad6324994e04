"""The report in Chromium: queries, thresholds, marks, pointing, the enlarged image, keys, two runs, narrow screens."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, FrameLocator, Locator, Page, expect

from demo.world.names import CATEGORY
from demo.world.scene import draw
from schemas.image_ids import format_image_ids
from tests.jobs.page.test_comparison import CHANGED, write_two_runs
from tests.jobs.test_report import (
    CLASS_NAMES,
    HEIGHT,
    HOSTILE_CLASS,
    HOSTILE_ID,
    IMAGES,
    WIDTH,
    image_ids,
    labelled_rows,
    make_report,
    write_example,
    write_images,
)
from tests.support.browser import faultless_page
from tests.support.drawn_labels import write_labels

PAINTED = """canvas => {
  if (!canvas.width) return 0;
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  let painted = 0;
  for (let at = 3; at < pixels.length; at += 4) painted += pixels[at] > 0;
  return painted;
}"""
READY = f"() => Array.from(document.querySelectorAll('.card canvas')).every({PAINTED})"
NEXT_FRAME = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
LINE_BREAK = "line\u2028break \u00e9.jpg"


def write_open_report(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A page about rows of preset open, and the rows. Probabilities are half of the scores, the threshold is 0.3."""
    images = write_images(folder / "images")
    names = [HOSTILE_ID, LINE_BREAK, *image_ids()[2:]]
    (images / image_ids()[1]).rename(images / LINE_BREAK)
    rows = labelled_rows(names, [str(images / name) for name in names], names)
    for entry in rows:
        entry["class_probabilities"] = [score / 2 for score in entry["class_scores"]]
    settings = {"preset": "open", "presence_threshold": 0.3}
    labels = write_labels(folder / "labels", rows[:5], rows[5:], class_names=CLASS_NAMES, settings=settings)
    return make_report(labels), rows


@pytest.fixture(scope="module")
def report_and_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    return write_open_report(tmp_path_factory.mktemp("report"))


@pytest.fixture
def report(report_and_rows: tuple[Path, list[dict[str, Any]]]) -> Path:
    return report_and_rows[0]


@pytest.fixture
def rows(report_and_rows: tuple[Path, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return report_and_rows[1]


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    with faultless_page(browser, report) as opened:
        show_all(opened)
        yield opened


def show_all(page: Page, height: int = 2400) -> None:
    """Make the window so high that every image is on it, and wait for their overlays."""
    page.set_viewport_size({"width": 1280, "height": height})
    page.wait_for_function(READY)


def painted(page: Page) -> list[int]:
    """The number of pixels that each image's overlay covers."""
    page.evaluate(NEXT_FRAME)
    return [canvas.evaluate(PAINTED) for canvas in page.locator(".card canvas").all()]


def shown(page: Page) -> list[str]:
    """The ids of the images that are shown, in their order."""
    page.evaluate(NEXT_FRAME)
    return [str(name.get_attribute("title")) for name in page.locator(".card:visible .name").all()]


def card_of(page: Page, image_id: str) -> Locator:
    return page.locator(".card", has=page.locator(f"xpath=.//bdi[@title='{image_id}']"))


def has(row: dict[str, Any], name: str) -> bool:
    return CATEGORY[name] in {entry["category_id"] for entry in row["annotations"]}


def score(row: dict[str, Any], name: str) -> float:
    return float(row["class_scores"][CATEGORY[name] - 1])


def ask(page: Page, query: str) -> list[str]:
    page.locator("#query").fill(query)
    page.locator("#query").press("Enter")
    return shown(page)


def test_images_have_texts_and_hostile_names_are_only_names(page: Page) -> None:
    assert page.locator(".card").count() == IMAGES
    assert all(page.locator(".card img").evaluate_all("images => images.map(i => i.alt && i.naturalWidth > 0)"))
    assert page.locator("b").count() == 0
    assert page.locator(".chip", has_text=HOSTILE_CLASS).count() == 1
    assert page.locator(f"xpath=//bdi[@title={HOSTILE_ID!r}]").count() == 1
    assert page.locator("img[src=x]").count() == 0


def test_a_class_is_toggled_by_click_and_by_keyboard(page: Page) -> None:
    chip = page.locator(".legend .chip", has_text="sky").first
    before = painted(page)
    chip.click()
    expect(chip).to_have_attribute("aria-pressed", "false")
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


QUERIES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "tree": lambda row: has(row, "tree"),
    "sky and not tree": lambda row: has(row, "sky") and not has(row, "tree"),
    "NOT Tree": lambda row: not has(row, "tree"),
    "tree or sea and house": lambda row: has(row, "tree") or (has(row, "sea") and has(row, "house")),
    "(tree or sea) and house": lambda row: (has(row, "tree") or has(row, "sea")) and has(row, "house"),
    'not (tree or "brick wall")': lambda row: not (has(row, "tree") or has(row, "brick wall")),
    "brick wall or sea": lambda row: has(row, "brick wall") or has(row, "sea"),
    "tree > 0.2": lambda row: score(row, "tree") > 0.2,
    "not tree<=.2 and sky >= 1": lambda row: score(row, "tree") > 0.2 and score(row, "sky") >= 1,
    "sky > 50 %": lambda row: score(row, "sky") / 2 > 0.5,
    HOSTILE_CLASS: lambda row: has(row, "mountain"),
}
BAD_QUERIES = {
    "treee": "There is no class “treee”: did you mean “tree”?",
    '"xylophone"': "There is no class “xylophone”.",
    "tree and": "A class is missing at the end.",
    "tree sky": "Write “and” or “or” before “sky”.",
    "tree zzzz": "Write “and” or “or” before “zzzz”.",
    "and tree": "Write a class before “and”.",
    "(tree or sky": "A parenthesis is not closed.",
    "tree)": "A parenthesis is closed that was not opened.",
    "tree > sky": "Write a number after “>”.",
    "tree >": "Write a number after “>”.",
    "<img src=x>": "Write a class before “<”.",
}


def test_queries_combine_classes(page: Page, rows: list[dict[str, Any]]) -> None:
    for query, holds in QUERIES.items():
        expected = {row["image_id"] for row in rows if holds(row)}
        assert 0 < len(expected) < IMAGES, "the query tells nothing apart"
        assert set(ask(page, query)) == expected, query
        expect(page.locator("#query-error")).to_be_hidden()
        expect(page.locator("#count")).to_have_text(f"{len(expected)} of {IMAGES} images")


def test_a_bad_query_is_one_sentence(page: Page) -> None:
    for query, sentence in BAD_QUERIES.items():
        assert len(ask(page, query)) == IMAGES
        expect(page.locator("#query-error")).to_have_text(sentence)
        expect(page.locator("#query")).to_have_attribute("aria-invalid", "true")
    page.locator("#query").fill("tree")
    expect(page.locator("#query-error")).to_be_hidden()
    expect(page.locator("#query")).to_have_attribute("aria-invalid", "false")


def test_suggestions_continue_the_query(page: Page) -> None:
    page.locator("#query").fill("sky and not (br")
    options = page.locator("#suggestions option")
    assert options.evaluate_all("options => options.map(option => option.value)") == [
        "sky and not (brick wall",
        "sky and not (umbrella",
    ]


def test_images_are_found_by_name(page: Page) -> None:
    page.locator("#search").fill("00")
    assert sorted(shown(page)) == sorted(name for name in image_ids()[2:] if "00" in name)
    page.locator("#search").fill("BREAK")
    assert shown(page) == [LINE_BREAK]


def test_orders(page: Page, rows: list[dict[str, Any]]) -> None:
    def best(row: dict[str, Any]) -> float:
        return max(row["class_scores"][entry["category_id"] - 1] for entry in row["annotations"])

    def margin(row: dict[str, Any]) -> float:
        """The smallest distance of a probability to the threshold of 0.3, as a share of the room on its side."""
        values = (score / 2 for score in row["class_scores"])
        return min((value - 0.3) / 0.7 if value >= 0.3 else (0.3 - value) / 0.3 for value in values)

    for order, key in [("highest", lambda row: -best(row)), ("lowest", best), ("closest", margin)]:
        page.locator("#order").select_option(order)
        assert shown(page) == [row["image_id"] for row in sorted(rows, key=key)], order
    page.locator("#order").select_option("name")
    assert shown(page) == sorted(row["image_id"] for row in rows)
    page.locator("#order").select_option("highest")
    trees = [row for row in rows if has(row, "tree")]
    by_tree = sorted(trees, key=lambda row: -score(row, "tree"))
    assert ask(page, "tree") == [row["image_id"] for row in by_tree], "the class of the query decides"
    facts = [f"{50 * score(row, 'tree'):.1f} %" for row in by_tree]
    assert page.locator(".card:visible .fact").all_inner_texts() == facts


def test_the_threshold_of_presence_acts_at_once(page: Page, rows: list[dict[str, Any]]) -> None:
    count = page.locator("#legend li", has=page.locator("bdi", has_text=re.compile("^sky$"))).locator(".of-class")
    before = painted(page)
    expect(count).to_have_text(str(sum(has(row, "sky") for row in rows)))
    page.locator("#presence").fill("0.5")
    expect(count).to_have_text(str(sum(score(row, "sky") / 2 >= 0.5 and has(row, "sky") for row in rows)))
    expect(page.locator("#presence-value")).to_have_text("50 %")
    assert sum(painted(page)) < sum(before)
    assert len(ask(page, "sky")) == sum(score(row, "sky") / 2 >= 0.5 for row in rows)
    ask(page, "")
    page.locator("#presence").fill("0.1")
    expect(count).to_have_text(str(sum(score(row, "sky") / 2 >= 0.1 for row in rows)))
    assert page.locator(".card .dot.hollow").count() > 0, "a class without a mask is named"
    assert painted(page) == before
    page.get_by_role("button", name="As labelled").click()
    expect(page.locator("#presence-value")).to_have_text("30 %, as labelled")
    expect(page.locator(".card .dot.hollow")).to_have_count(0)


def test_small_masks_are_left_out(page: Page, rows: list[dict[str, Any]]) -> None:
    before = painted(page)
    page.locator("#area").fill("40")
    least = 0.04 * HEIGHT * WIDTH
    expect(page.locator("#area-value")).to_have_text("4.0 %")
    expected = sum(entry["area"] for row in rows for entry in row["annotations"] if entry["area"] >= least)
    assert sum(painted(page)) == expected < sum(before)


def point_at_places(page: Page, layers: Locator, seed: int) -> None:
    """Point at places of a drawn image, which lies in the middle of its box, and read the class."""
    layers.scroll_into_view_if_needed()
    page.evaluate(NEXT_FRAME)
    box = layers.bounding_box()
    assert box is not None
    scale = min(box["width"] / WIDTH, box["height"] / HEIGHT)
    left = box["x"] + (box["width"] - scale * WIDTH) / 2
    top = box["y"] + (box["height"] - scale * HEIGHT) / 2
    truth = draw(seed, HEIGHT, WIDTH).labels
    tip = page.locator("#tip")
    for column, line in [(5, 5), (40, 30), (70, 55), (20, 50)]:
        page.mouse.move(left + (column + 0.5) * scale, top + (line + 0.5) * scale)
        name = CLASS_NAMES[truth[line, column] - 1] if truth[line, column] else "background"
        expect(tip).to_contain_text(name)
        assert ("score" in tip.inner_text()) == (name != "background")


def test_pointing_names_the_class(page: Page) -> None:
    for seed in (3, 4):
        point_at_places(page, card_of(page, f"{seed:03}.jpg").locator(".layers"), seed)
    page.mouse.move(1, 1)
    expect(page.locator("#tip")).to_be_hidden()
    page.set_viewport_size({"width": 1280, "height": 400})
    card_of(page, "004.jpg").locator(".image").click()
    layers = page.locator("#viewer .layers")
    box = layers.bounding_box()
    assert box is not None
    assert box["width"] > 1.5 * box["height"], "there is room on both sides of the image"
    point_at_places(page, layers, 4)
    page.mouse.move(box["x"] + 2, box["y"] + 20)
    expect(page.locator("#tip")).to_be_hidden()


def opacity(canvas: Locator) -> str:
    return str(canvas.evaluate("canvas => getComputedStyle(canvas).opacity"))


def test_pressing_shows_the_original(page: Page) -> None:
    layers = page.locator(".card .layers").first
    canvas = layers.locator("canvas")
    layers.hover()
    page.mouse.down()
    page.wait_for_function("() => document.querySelector('.layers.original')")
    assert opacity(canvas) == "0"
    page.mouse.up()
    assert opacity(canvas) == "0.75"
    expect(page.locator("#viewer")).to_be_hidden()
    page.keyboard.press("o")
    assert {opacity(one) for one in page.locator(".card canvas").all()} == {"0"}
    page.keyboard.press("o")
    assert opacity(canvas) == "0.75"
    layers.click()
    expect(page.locator("#viewer")).to_be_visible()


def test_touch_names_the_class_and_shows_the_original(browser: Browser, report: Path) -> None:
    context = browser.new_context(viewport={"width": 375, "height": 812}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(report.as_uri())
    page.wait_for_function(f"() => ({PAINTED})(document.querySelector('.card canvas'))")
    page.locator(".card .image").first.tap()
    expect(page.locator("#viewer")).to_be_visible()
    page.locator("#viewer .layers").tap()
    expect(page.locator("#tip")).to_contain_text(re.compile("score|background"))
    box = page.locator("#viewer .layers").bounding_box()
    assert box is not None
    session = context.new_cdp_session(page)
    points = [{"x": box["x"] + 50, "y": box["y"] + 50}]
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": points})
    page.wait_for_function("() => document.querySelector('#viewer .layers.original')")
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function("() => !document.querySelector('#viewer .layers.original')")
    context.close()


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
    canvas, row = page.locator("#viewer canvas"), page.locator("#viewer tbody .chip").first
    before = canvas.evaluate("canvas => canvas.toDataURL()")
    row.focus()
    assert canvas.evaluate("canvas => canvas.toDataURL()") != before, "the class with the focus stands out"
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    assert first.evaluate("button => button === document.activeElement")
    page.keyboard.press("ArrowRight")
    assert page.locator(".card:visible .image").nth(1).evaluate("button => button === document.activeElement")


def test_keys_lead_to_the_fields_and_are_text_inside_them(page: Page) -> None:
    for key, field in [("q", "#query"), ("/", "#search")]:
        page.locator("#original").focus()
        page.keyboard.press(key)
        page.keyboard.type("mo")
        expect(page.locator(field)).to_have_value("mo")
        assert page.locator(field).evaluate("field => getComputedStyle(field).outlineStyle") == "solid"
    expect(page.locator("#original")).to_have_attribute("aria-pressed", "false")
    assert page.locator(".card.marked").count() == 0


def downloaded(page: Page) -> str:
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename == "marks.txt"
    return Path(download.value.path()).read_bytes().decode()


def test_marks_survive_a_reload_and_are_downloaded_as_a_file_of_ids(page: Page) -> None:
    """Odd ids are written as `schemas.image_ids` writes them."""
    ids = [HOSTILE_ID, LINE_BREAK, "005.jpg"]
    for image_id in ids[:2]:
        card_of(page, image_id).locator(".mark").click()
    card_of(page, ids[2]).locator(".image").focus()
    page.keyboard.press("m")
    expect(page.locator(".card.marked")).to_have_count(3)
    assert downloaded(page) == format_image_ids(ids)
    page.reload()
    page.wait_for_function(READY)
    expect(page.locator(".card.marked")).to_have_count(3)
    assert downloaded(page) == format_image_ids(ids)
    page.locator("#only-marked").check()
    assert set(shown(page)) == set(ids)
    page.locator(".card:visible .image").first.click()
    page.keyboard.press("m")
    page.keyboard.press("Escape")
    assert len(shown(page)) == 2
    expect(page.locator("#marks-note")).to_be_hidden()


def test_ids_are_written_as_python_writes_them(page: Page) -> None:
    spaces = [chr(code) for code in range(0x3100) if chr(code).isspace()]
    lines = [chr(code) for code in range(0x3100) if len(f"a{chr(code)}b".splitlines()) > 1]
    ids = ["plain", "", '"', 'in"side', "\ufeffmark", "in\ufeffside", "\x7f", "\x00", "é\U0001f600", "\\"]
    ids += [text for odd in (*spaces, *lines) for text in (f"{odd}a", f"a{odd}", f"a{odd}b", f'"{odd}é\U0001f600')]
    assert page.evaluate("ids => ids.map(lineOf)", ids) == [format_image_ids([one]).removesuffix("\n") for one in ids]


def test_marks_are_all_forgotten_on_demand(browser: Browser, report: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.on("dialog", lambda dialog: dialog.accept())
    page.goto(report.as_uri())
    for button in page.locator(".card .mark").all()[:3]:
        button.click()
    page.locator("#clear-marks").click()
    expect(page.locator(".card.marked")).to_have_count(0)
    expect(page.locator("#download")).to_be_disabled()
    context.close()


def test_a_page_that_may_keep_nothing_says_so(browser: Browser, report: Path, tmp_path: Path) -> None:
    """As in a mail program, which gives the page no storage."""
    (tmp_path / "frame.html").write_text(
        f'<iframe sandbox="allow-scripts" width=1000 height=900 src="{report.as_uri()}">'
    )
    with faultless_page(browser, tmp_path / "frame.html") as outer:
        page: FrameLocator = outer.frame_locator("iframe")
        expect(page.locator("#marks-note")).to_be_hidden()
        page.locator(".card .mark").first.click()
        expect(page.locator(".card.marked")).to_have_count(1)
        expect(page.locator("#marks-note")).to_be_visible()


def test_without_probabilities_scores_decide(browser: Browser, tmp_path: Path) -> None:
    labels, images = write_example(tmp_path)
    with faultless_page(browser, make_report(labels, "--images", str(images))) as page:
        show_all(page)
        before = painted(page)
        expect(page.locator("#presence-value")).to_have_text("0.70, as labelled")
        page.locator("#presence").fill("1")
        assert 0 < sum(painted(page)) < sum(before)
        ask(page, "sky > 60 %")
        expect(page.locator("#query-error")).to_have_text(
            "There are no probabilities here: compare with a score, without %."
        )


def test_every_image_is_printed_with_its_overlay(browser: Browser, report: Path, tmp_path: Path) -> None:
    with faultless_page(browser, report) as page:
        page.set_viewport_size({"width": 400, "height": 300})
        page.wait_for_function("() => images.every(({ sides }) => sides.every(({ codes }) => codes))")
        assert 0 in painted(page), "an image far below is not painted"
        page.evaluate(
            f"() => window.addEventListener('beforeprint', () => {{ window.inPrint = ({READY})(); }}, {{ once: true }})"
        )
        page.pdf(path=tmp_path / "report.pdf")
        assert page.evaluate("inPrint") is True
        assert 0 in painted(page)


def test_charts_have_labels_with_their_numbers(browser: Browser, tmp_path: Path) -> None:
    labels, images = write_example(tmp_path)
    with faultless_page(browser, make_report(labels, "--images", str(images), "--pictures", "1")) as page:
        assert "12 ok" in str(page.locator(".statuses").get_attribute("aria-label"))
        kinds = page.locator(".failures tbody tr")
        assert kinds.locator("th").all_inner_texts() == ["truncated", "empty"]
        page.locator("#scores-class").select_option(label="sky")
        assert "Scores of sky, found" in str(page.locator("#found").get_attribute("aria-label"))
        assert page.locator("#found i").count() == page.locator("#others i").count() > 10


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    one, other = write_two_runs(tmp_path_factory.mktemp("runs"))
    return make_report(one, "--compare", str(other))


def test_two_runs_side_by_side(browser: Browser, comparison: Path) -> None:
    with faultless_page(browser, comparison) as page:
        show_all(page, 6000)
        changed = f"{CHANGED:03}.jpg"
        assert shown(page)[0] == changed
        expect(page.locator(".card:visible .fact").first).to_have_text("50.0 % differ")
        assert page.locator(".card").first.locator(".badge").all_inner_texts() == ["one", "other"]
        page.locator("#order").select_option("changes")
        assert shown(page)[0] == changed
        expect(page.locator(".card:visible .fact").first).to_contain_text("1 gained")
        assert page.locator(".found .change", has_text="kite").count() == 1
        expect(page.locator("#legend li", has_text="kite").locator(".of-class")).to_have_text("0 | 1")
        page.locator("#only-differences").check()
        half = HEIGHT * WIDTH // 2
        by_side = [painted(page)[:2], painted(page)[2:]]
        assert by_side[0][1] == half, "only the kite"
        assert set(by_side[1]) == {0}
        assert ask(page, "kite") == [changed]
        page.locator(".card:visible .image").click()
        assert page.locator("#viewer table").count() == page.locator("#viewer canvas").count() == 2
        expect(page.locator("#viewer-size")).to_contain_text("50.0 % of the pixels differ")


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_the_page_fits_the_window_and_dark_mode_is_dark(
    name: str, width: int, browser: Browser, request: pytest.FixtureRequest
) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        page.goto(request.getfixturevalue(name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator(".card .image").first.click()
        assert page.locator("#viewer").evaluate("viewer => viewer.scrollWidth <= viewer.clientWidth")
        grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        context.close()
    assert grounds["light"] != grounds["dark"]
