"""The report on a small output made by hand: counts, samples, images and refusals."""

import base64
import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cluster.output.folder import Output
from cluster.output.rows import open_labels
from cluster.storage import open_location
from demo.world.names import NAMES
from demo.world.scene import Scene, draw
from jobs.common.counts import BINS, Counts, ScoredRows, count_labels
from jobs.page.images import read_images
from jobs.page.page import make_sample, percent
from jobs.page.samples import Samples, read_rows
from jobs.report import main
from schemas.colours import class_colours
from schemas.rows import Status
from tests.support.drawn_labels import failure, row, write_labels
from tests.support.jobs import refusal

HEIGHT, WIDTH = 60, 80
IMAGES = 12
HOSTILE_ID = '"><script>alert(1)</script>.jpg'
HOSTILE_CLASS = "</script><b>bold</b>"
CLASS_NAMES = [HOSTILE_CLASS if name == "mountain" else name for name in NAMES]
FAILURES = {
    "torn.jpg": (Status.TRUNCATED, "the image is damaged: <img src=x onerror=alert(1)>"),
    "torn-too.jpg": (Status.TRUNCATED, "the image is damaged"),
    "nothing.jpg": (Status.EMPTY, "there are no bytes"),
}


def scores_of(scene: Scene, seed: int) -> np.ndarray:
    """High for what is there, low for the rest, no two alike."""
    noise = np.random.default_rng(seed).random(len(NAMES)) * 0.4
    there = np.isin(np.arange(1, len(NAMES) + 1), scene.categories)
    return np.where(there, 0.75 + noise, noise).astype(np.float32)


def image_ids() -> list[str]:
    return [HOSTILE_ID, *(f"{seed:03}.jpg" for seed in range(1, IMAGES))]


def jpeg(scene: Scene) -> bytes:
    file = io.BytesIO()
    Image.fromarray(scene.image).save(file, "JPEG", quality=95)
    return file.getvalue()


def labelled_rows(ids: Sequence[str], uris: Sequence[str], shards: Sequence[str]) -> list[dict[str, Any]]:
    """One row for every drawn image, with its true labels."""
    rows = []
    for seed, (image_id, uri, shard) in enumerate(zip(ids, uris, shards, strict=True)):
        scene = draw(seed, HEIGHT, WIDTH)
        names = {"image_id": image_id, "uri": uri, "shard": shard, "shard_images": 1}
        rows.append(row(seed, scene.labels, scores_of(scene, seed), **names))
    return rows


def failed_rows() -> list[dict[str, Any]]:
    return [failure(name, *facts) | {"image_id": name, "shard_images": 1} for name, facts in FAILURES.items()]


def write_output(folder: Path, rows: Sequence[dict[str, Any]], finished: bool = True) -> Path:
    middle = len(rows) // 2
    return write_labels(folder, rows[:middle], rows[middle:], class_names=CLASS_NAMES, finished=finished)


def write_images(folder: Path) -> Path:
    """The drawn images as files. The slash in the hostile id makes its first half a folder."""
    for seed, name in enumerate(image_ids()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(draw(seed, HEIGHT, WIDTH)))
    return folder


def write_example(folder: Path, finished: bool = True) -> tuple[Path, Path]:
    """An output with failures and hostile names, and the folder with its images."""
    images = write_images(folder / "images")
    ids = image_ids()
    rows = labelled_rows(ids, [str(images / name) for name in ids], ids)
    return write_output(folder / "labels", [*rows[:4], *failed_rows(), *rows[4:]], finished), images


def page_data(page: Path) -> dict[str, Any]:
    """What the page's script gets."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def make_report(labels: Path, *flags: str) -> Path:
    page = labels.parent / "report.html"
    assert main(["--labels", str(labels), "--output", str(page), *flags]) == 0
    return page


def test_rows_are_counted_by_status_class_and_score(tmp_path: Path) -> None:
    labels, _ = write_example(tmp_path)
    counts = count_labels(open_labels(str(labels), "--labels"))
    assert counts.by_status == {"ok": IMAGES, "truncated": 2, "empty": 1}
    assert counts.example_errors["truncated"] == f"torn.jpg: {FAILURES['torn.jpg'][1]}"
    assert counts.file_starts == [0, 7, 15]
    assert counts.without_class == 0
    drawn = [draw(seed, HEIGHT, WIDTH) for seed in range(IMAGES)]
    present = np.array([np.isin(np.arange(1, len(NAMES) + 1), scene.categories) for scene in drawn])
    scores = np.array([scores_of(scene, seed) for seed, scene in enumerate(drawn)])
    assert counts.images_by_class.tolist() == present.sum(axis=0).tolist()
    for index in range(len(NAMES)):
        for found in (0, 1):
            of_kind = scores[present[:, index] == found, index]
            expected, _ = np.histogram(of_kind, bins=np.append(np.arange(BINS) / 20, np.inf))
            assert counts.histograms[found, index].tolist() == expected.tolist()


def test_scores_beyond_the_last_bin_and_images_without_a_class_are_counted() -> None:
    counts = Counts(np.zeros((2, 2, BINS), np.int64))
    scores = np.array([[0.0, 9.0], [np.nan, 2.0], [0.11, 1.99]], np.float32)
    counts.add_scores(ScoredRows(np.arange(3), scores, np.array([0, 1]), np.array([1, 1])))
    assert counts.without_class == 1
    assert counts.histograms[1, 1, -1] == 2
    assert counts.histograms[0, 1, -2] == 1
    assert counts.histograms[0, 0, :3].tolist() == [2, 0, 1]


def scored_rows(scores: np.ndarray, threshold: float, first_row: int = 0) -> ScoredRows:
    images, classes = np.nonzero(scores > threshold)
    return ScoredRows(first_row + np.arange(len(scores)), scores, images, classes)


@pytest.mark.parametrize("chunks", [1, 7])
def test_the_samples_have_high_and_median_scores_of_every_class(chunks: int) -> None:
    scores = np.random.default_rng(3).random((700, 5)).astype(np.float32)
    scores[:, 4] = 0
    scores[[5, 600], 4] = 0.99, 0.96
    samples = Samples(12, seed=0)
    for part in np.split(np.arange(700), chunks):
        samples.add(scored_rows(scores[part], 0.5, part[0]))
    images = (scores > 0.5).sum(axis=0)
    chosen = samples.choose(images)
    assert len(chosen) == len(set(chosen)) == 12
    assert {5, 600} < set(chosen)
    for index in range(4):
        assert scores[:, index].argmax() in chosen
        assert any(0.65 < scores[row, index] < 0.85 for row in chosen)
    assert samples.choose(images) == chosen


def test_random_images_fill_the_remaining_places() -> None:
    samples = Samples(40, seed=0)
    samples.add(scored_rows(np.zeros((30, 3), np.float32), 0.5))
    assert sorted(samples.choose(np.zeros(3, np.int64))) == list(range(30))


def test_chosen_rows_are_read_with_their_masks_in_order_and_once(tmp_path: Path) -> None:
    ids = [*image_ids()[:11], "001.jpg"]
    labels = open_labels(str(write_output(tmp_path / "labels", labelled_rows(ids, ids, ids))), "--labels")
    rows = read_rows(labels, count_labels(labels).file_starts, [10, 1, 6, 11])
    assert [row["image_id"] for row in rows] == ["010.jpg", "001.jpg", "006.jpg"]
    assert all(row["annotations"][0]["segmentation"]["size"] == [HEIGHT, WIDTH] for row in rows)


def folder_corpus(folder: Path) -> tuple[list[str], list[str], list[str]]:
    write_images(folder)
    ids = image_ids()
    return ids, [str(folder / name) for name in ids], ids


def tar_corpus(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Two shards in a sub-folder; a member that comes twice."""
    (folder / "sub").mkdir(parents=True)
    names = [f"{seed}.jpg" for seed in range(IMAGES - 1)] + [f"{IMAGES - 2}.jpg"]
    shards = ["sub/a.tar" if seed < 6 else "sub/b.tar" for seed in range(IMAGES)]
    for shard in dict.fromkeys(shards):
        with tarfile.open(folder / shard, "w") as archive:
            for seed, name in enumerate(names):
                if shards[seed] == shard:
                    data = jpeg(draw(seed, HEIGHT, WIDTH))
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    ids = [f"{shard}/{name}" for shard, name in zip(shards, names, strict=True)]
    ids[-1] += "#2"
    uris = [f"tar://{name}::{folder / shard}" for shard, name in zip(shards, names, strict=True)]
    return ids, uris, shards


def table_corpus(folder: Path) -> tuple[list[str], list[str], list[str]]:
    folder.mkdir()
    images = [{"bytes": jpeg(draw(seed, HEIGHT, WIDTH)), "path": None} for seed in range(IMAGES)]
    pq.write_table(pa.table({"image": images}), folder / "all.parquet", row_group_size=5)
    ids = [f"all.parquet/{row}" for row in range(IMAGES)]
    return ids, [f"{folder / 'all.parquet'}#row={row}" for row in range(IMAGES)], ["all.parquet"] * IMAGES


@pytest.mark.parametrize("from_input", [False, True])
@pytest.mark.parametrize("corpus", [folder_corpus, tar_corpus, table_corpus])
def test_images_are_found_in_every_kind_of_corpus(
    tmp_path: Path, corpus: Callable[[Path], tuple[list[str], list[str], list[str]]], from_input: bool
) -> None:
    ids, uris, shards = corpus(tmp_path / "images")
    if from_input:
        uris = ["/not/there"] * IMAGES
    labels = write_output(tmp_path / "labels", labelled_rows(ids, uris, shards))
    flags = ["--images", str(tmp_path / "images")] if from_input else []
    data = page_data(make_report(labels, *flags, "--thumbnail-px", "40"))
    assert sorted(image["image_id"] for image in data["images"]) == sorted(ids)
    for image in data["images"]:
        truth = draw(ids.index(image["image_id"]), HEIGHT, WIDTH).labels
        assert (image["width"], image["height"]) == (40, 30)
        [side] = image["sides"]
        positions = np.frombuffer(zlib.decompress(base64.b64decode(side["overlay"])), np.uint8).reshape(30, 40)
        categories = np.array([0, *(index + 1 for index in side["overlay_classes"])])[positions]
        assert (categories == truth[1::2, 1::2]).all()
        for index, share in side["found"]:
            assert share == pytest.approx((truth == index + 1).mean())
        assert side["lost_to"] in ({}, {"0": "wall"})
        assert side["scores"] == pytest.approx(
            scores_of(draw(ids.index(image["image_id"]), HEIGHT, WIDTH), ids.index(image["image_id"])), abs=1e-4
        )
        assert len(side["probabilities"]) == len(NAMES)


def test_images_that_cannot_be_read_are_left_out_with_a_note(tmp_path: Path) -> None:
    labels, images = write_example(tmp_path)
    (images / "001.jpg").unlink()
    (images / "002.jpg").write_bytes(b"no image")
    (images / "003.jpg").write_bytes((images / "004.jpg").read_bytes()[:700])
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(images / "005.jpg")
    (images / "006.jpg").write_bytes(b"")
    page = make_report(labels, "--images", str(images))
    assert len(page_data(page)["images"]) == IMAGES - 5
    text = page.read_text()
    assert "5 chosen images cannot be shown" in text
    for reason in ("no longer there", "no image in a known format", "damaged", "another size", "no bytes"):
        assert reason in text


@pytest.mark.parametrize("damage", ["cut", "no table", "other"])
def test_a_damaged_table_or_shard_costs_its_images_only(tmp_path: Path, damage: str) -> None:
    ids, uris, shards = table_corpus(tmp_path / "images") if damage != "cut" else tar_corpus(tmp_path / "images")
    file = tmp_path / "images" / shards[0]
    if damage == "other":
        pq.write_table(pa.table({"text": ["a"]}), file)
    else:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"PAR1 nothing PAR1")
    data = page_data(make_report(write_output(tmp_path / "labels", labelled_rows(ids, uris, shards))))
    assert len(data["images"]) in (range(7, IMAGES) if damage == "cut" else [0])


def test_an_address_that_cannot_be_opened_costs_its_image_only() -> None:
    rows = labelled_rows(["a.jpg", "b.jpg"], ["nowhere://a.jpg", "s3://user:secret@host/b.jpg"], ["a.jpg", "b.jpg"])
    made, unreadable = read_images(rows, None, lambda row, image: row)
    assert (made, [entry.image_id for entry in unreadable]) == ([], ["a.jpg", "b.jpg"])
    assert "secret" not in unreadable[1].reason


def test_a_single_file_stands_for_its_folder(tmp_path: Path) -> None:
    ids, _, shards = table_corpus(tmp_path / "images")
    labels = write_output(tmp_path / "labels", labelled_rows(ids, ["/not/there"] * IMAGES, shards))
    data = page_data(make_report(labels, "--images", str(tmp_path / "images" / "all.parquet"), "--pictures", "5"))
    assert len(data["images"]) == 5


def test_the_overlay_of_a_large_vocabulary_has_its_classes() -> None:
    row = labelled_rows(["a"], ["a"], ["a"])[0]
    for entry in row["annotations"]:
        entry["category_id"] += 900
    row["class_scores"] = [0.1] * 1000
    sample = make_sample([row], Image.fromarray(draw(0, HEIGHT, WIDTH).image), 320)
    assert (sample["width"], sample["height"]) == (WIDTH, HEIGHT)
    [side] = sample["sides"]
    positions = np.frombuffer(zlib.decompress(base64.b64decode(side["overlay"])), np.uint8)
    categories = np.array([-1, *side["overlay_classes"]])[positions].reshape(HEIGHT, WIDTH)
    assert (categories == draw(0, HEIGHT, WIDTH).labels.astype(int) + 899).all()


def test_colours_are_distinct_and_depend_on_the_position_only() -> None:
    colours = class_colours(200)
    assert len(set(colours)) == 200
    assert colours[:7] == class_colours(7)
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)


@pytest.mark.parametrize(("share", "text"), [(0.0, "0.0 %"), (0.0004, "< 0.1 %"), (0.5, "50.0 %"), (1.0, "100.0 %")])
def test_small_shares_are_never_shown_as_zero(share: float, text: str) -> None:
    assert percent(share) == text


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    labels, _ = write_example(tmp_path)
    text = make_report(labels).read_text()
    assert "<script>alert" not in text
    assert "<b>bold" not in text
    assert "<img src=x" not in text
    assert "alert(1)" in text


def test_the_seed_determines_the_page(tmp_path: Path) -> None:
    labels, _ = write_example(tmp_path)
    pages = [make_report(labels, "--pictures", "8", "--seed", seed).read_bytes() for seed in "00123456"]
    assert pages[0] == pages[1]
    assert len(set(pages)) > 1


def test_an_unfinished_output_has_a_note_and_only_rows_that_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, _ = write_example(tmp_path, finished=False)
    text = make_report(labels).read_text()
    assert "This output is not finished." in text
    assert "the 7 rows" in text
    assert "finished: 7 rows so far" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--labels", "{tmp}/nowhere"], "--labels {tmp}/nowhere has no manifest.json"),
        (["--labels", "{tmp}/images"], "--labels {tmp}/images has no manifest.json"),
        (["--labels", "{tmp}/begun"], "--labels {tmp}/begun has no rows"),
        (["--compare", "{tmp}/nowhere"], "--compare {tmp}/nowhere has no manifest.json"),
        (["--compare", "{tmp}/begun"], "--compare {tmp}/begun has no rows"),
        (["--compare", "{tmp}/strange"], "--compare {tmp}/strange has no image in common with --labels {tmp}/labels"),
        (["--labels", "{tmp}/foreign"], "{tmp}/foreign holds rows that do not fit the manifest"),
        (["--images", "{tmp}/nowhere"], "--images {tmp}/nowhere cannot be read: it does not exist"),
        (["--images", "s3://user:secret@bucket/x"], "--images carries credentials"),
        (["--output", "{tmp}/images"], "--output {tmp}/images is a folder"),
        (["--output", "{tmp}/file/report.html"], "--output {tmp}/file/report.html cannot be written"),
        (["--output", "/proc/nowhere/report.html"], "--output /proc/nowhere/report.html cannot be written"),
        (["--pictures", "-1"], "--pictures must be between 0 and 2000, not -1"),
        (["--thumbnail-px", "3"], "--thumbnail-px must be between 16 and 2048, not 3"),
        (["--seed", "-1"], "--seed must be at least 0, not -1"),
    ],
)
def test_wrong_requests_end_with_one_sentence(tmp_path: Path, changes: list[str], message: str) -> None:
    labels, _ = write_example(tmp_path)
    manifest = (labels / "manifest.json").read_text()
    for name in ("begun", "foreign"):
        (tmp_path / name / "rows").mkdir(parents=True)
        (tmp_path / name / "manifest.json").write_text(manifest)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "foreign" / "rows/run_000000-0.parquet")
    for name in ("begun", "foreign"):
        output = Output(open_location(str(tmp_path / name), "--labels"))
        output.finish(output.data_files())
    write_output(tmp_path / "strange", labelled_rows(["other.jpg"], ["other.jpg"], ["other.jpg"]))
    (tmp_path / "file").touch()
    request = ["--labels", str(labels), "--output", str(tmp_path / "report.html")]
    flags = [*request, *(part.format(tmp=tmp_path) for part in changes)]
    assert message.format(tmp=tmp_path) in refusal(main, *flags)
    assert not (tmp_path / "report.html").exists()
    assert not (tmp_path / "report.html.part").exists()


def test_a_page_without_images(tmp_path: Path) -> None:
    labels, _ = write_example(tmp_path)
    assert "There is no image to show." in make_report(labels, "--pictures", "0").read_text()
