"""What people keep beside their images goes in, and comes out joined, filtered and copied, with nothing lost."""

import io
import json
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import jobs.filter
from schemas.image_ids import format_image_ids
from tests.end_to_end.conftest import FinishedRun
from tests.support.corpora import sample_images, tar_bytes, write_folder
from tests.support.jobs import VOCABULARY, OutputReader

IMAGES = 9
CLASSES = [line.partition(":")[0] for line in VOCABULARY.splitlines()]


@pytest.fixture(scope="module")
def flags(finished_run: FinishedRun) -> list[str]:
    return [*finished_run.flags, "--diffusion", "none", "--compensation", "none"]


def captions(folder: Path) -> dict[str, bytes]:
    """WebDataset shards with captions and metadata; returns all members by shard and name."""
    folder.mkdir()
    written: dict[str, bytes] = {}
    for shard in range(3):
        members: dict[str, bytes] = {}
        for name, data in list(sample_images(IMAGES).items())[shard::3]:
            stem = name.removesuffix(".jpg")
            members |= {
                name: data,
                f"{stem}.json": json.dumps({"key": f"{shard}-{stem}", "url": "https://a/ü", "score": 0.25}).encode(),
                f"{stem}.txt": f"a caption of {stem}\n".encode(),
                f"{stem}.depth.npy": bytes(range(shard, shard + 50)),
            }
        (folder / f"{shard}.tar").write_bytes(tar_bytes(members))
        written |= {f"{shard}.tar/{name}": data for name, data in members.items()}
    return written


def tar_members(files: dict[str, bytes]) -> dict[str, bytes]:
    """Members of all tar shards of a copy."""
    found: dict[str, bytes] = {}
    for name in sorted(name for name in files if name.endswith(".tar")):
        with tarfile.open(fileobj=io.BytesIO(files[name])) as archive:
            for member in archive:
                assert member.name not in found, "WebDataset refuses a sample with two files of one name"
                found[member.name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    return found


def stem_of(name: str) -> str:
    shard, _, member = name.partition("/")
    return f"{shard}/{member.partition('.')[0]}"


def annotations_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry | {"category": CLASSES[entry["category_id"] - 1]} for entry in row["annotations"]]


def split_labels(files: dict[str, bytes], ending: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The labels by the id of their image, and the other files."""
    labels = {f"{name.removesuffix(ending)}.jpg": data for name, data in files.items() if name.endswith(ending)}
    return labels, {name: data for name, data in files.items() if not name.endswith(ending)}


def test_captions_of_tar_shards_come_out_joined_filtered_and_copied(
    finished_run: FinishedRun, flags: list[str], tmp_path: Path
) -> None:
    went_in = captions(tmp_path / "in")
    labels, ray = tmp_path / "labels", finished_run.ray
    run = ray.annotate(str(tmp_path / "in"), str(labels), *flags, "--keep-columns", "key, txt,json,score")
    assert run.returncode == 0, run.stderr
    rows = OutputReader(str(labels), {}).rows()
    assert len(rows) == IMAGES
    for image_id, row in rows.items():
        stem = image_id.removesuffix(".jpg")
        assert row["txt"].encode() == went_in[f"{stem}.txt"]
        assert row["json"].encode() == went_in[f"{stem}.json"]
        assert (row["key"], row["score"]) == (stem.replace(".tar/", "-"), "0.25")
        assert row["classes"] == [CLASSES[entry["category_id"] - 1] for entry in row["annotations"]]

    table, kept = tmp_path / "kept.parquet", tmp_path / "kept"
    filtered = ["--labels", str(labels), "--where", "key LIKE '1-%' OR txt LIKE '%00002%'"]
    run = ray.run(jobs.filter.main, *filtered, "--output", str(table), "--copy-to", str(kept))
    assert run.returncode == 0, run.stderr
    chosen = {row["image_id"]: row for row in pq.read_table(table).to_pylist()}
    assert sorted(chosen) == ["1.tar/00001.jpg", "1.tar/00004.jpg", "1.tar/00007.jpg", "2.tar/00002.jpg"]
    same = ("uri", "width", "height", "classes", "key", "txt", "json", "score")
    assert chosen == {
        image_id: {"image_id": image_id} | {name: rows[image_id][name] for name in same} for image_id in chosen
    }

    beside, copied = split_labels(tar_members(OutputReader(str(kept), {}).files()), ".labels.json")
    stems = {image_id.removesuffix(".jpg") for image_id in chosen}
    assert copied == {name: data for name, data in went_in.items() if stem_of(name) in stems}
    assert {name: json.loads(data)["annotations"] for name, data in beside.items()} == {
        image_id: annotations_of(rows[image_id]) for image_id in chosen
    }


@dataclass(frozen=True)
class LabelledTable:
    """A table in ``folder / "in"``, its labels in ``folder / "labels"``, and the rows by the table's row number."""

    folder: Path
    table: pa.Table
    printed: str

    @property
    def labels(self) -> Path:
        return self.folder / "labels"

    @property
    def rows(self) -> dict[int, dict[str, Any]]:
        return {row["id"] - 2**40: row for row in pq.read_table(self.labels / "rows").to_pylist()}


@pytest.fixture(scope="module")
def labelled(finished_run: FinishedRun, flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> LabelledTable:
    folder, images = tmp_path_factory.mktemp("table"), sample_images(IMAGES)
    table = pa.table({
        "id": pa.array(range(2**40, 2**40 + IMAGES), pa.int64()),
        "photo": [{"bytes": data, "path": name} for name, data in images.items()],
        "preview": [b"no image"] * IMAGES,
        "tags": [["thing"], [], None, ["other", "Pony"], None, ["OTHER"], None, None, ["Pony"]],
        "image_id": [f"mine {number}" for number in range(IMAGES)],
    })  # fmt: skip
    (folder / "in").mkdir()
    pq.write_table(table, folder / "in/part.parquet", row_group_size=2)
    columns = ["--image-column", "photo", "--keep-columns", "id,image_id,tags", "--allowed-column", "tags"]
    run = finished_run.ray.annotate(str(folder / "in"), str(folder / "labels"), *flags, *columns)
    assert run.returncode == 0, run.stderr
    return LabelledTable(folder, table, run.stdout)


def test_a_table_comes_out_joined(labelled: LabelledTable) -> None:
    assert pq.read_table(labelled.labels / "rows").schema.field("id").type == pa.int64()
    joined = duckdb.sql(
        f"SELECT * FROM '{labelled.labels}/rows/*.parquet' labels "
        f"JOIN read_parquet('{labelled.folder}/in/*.parquet', file_row_number = true, filename = true) mine "
        "ON labels.image_id = parse_filename(mine.filename) || '/' || mine.file_row_number"
    )
    assert joined.filter("id <> id_1 OR input_image_id <> image_id_1").fetchall() == []
    assert len(joined.fetchall()) == IMAGES


def test_tags_restrict_the_classes_of_their_image(
    finished_run: FinishedRun, flags: list[str], labelled: LabelledTable, tmp_path: Path
) -> None:
    assert "Tags that are no class of the vocabulary (images): Pony (2)" in labelled.printed
    rows = labelled.rows
    assert [rows[number]["allowed_classes"] for number in range(IMAGES)] == [
        [1], [], None, [2], None, [2], None, None, [],
    ]  # fmt: skip
    for number, row in rows.items():
        assert row["tags"] == labelled.table["tags"][number].as_py()
        assert row["unknown_tags"] == (None if row["tags"] is None else [tag for tag in row["tags"] if tag == "Pony"])
        if row["allowed_classes"] is not None:
            assert {entry["category_id"] for entry in row["annotations"]} <= set(row["allowed_classes"])
    corpus, free = str(labelled.folder / "in"), str(tmp_path / "free")
    run = finished_run.ray.annotate(corpus, free, *flags, "--image-column", "photo")
    assert run.returncode == 0, run.stderr
    unrestricted = OutputReader(free, {}).rows()
    assert all(
        unrestricted[row["image_id"]]["annotations"] == row["annotations"]
        for row in rows.values()
        if row["allowed_classes"] is None
    )


def test_a_table_comes_out_filtered_and_copied(
    finished_run: FinishedRun, labelled: LabelledTable, tmp_path: Path
) -> None:
    kept, ray, rows, images = tmp_path / "kept", finished_run.ray, labelled.rows, sample_images(IMAGES)
    request = ["--labels", str(labelled.labels), "--where", f"id >= {2**40 + 3}", "--copy-to", str(kept)]
    request += ["--copy-as", "folder", "--copy-labels", "png", "--pictures-per-shard", "4"]
    run = ray.run(jobs.filter.main, *request)
    assert run.returncode == 0, run.stderr
    files = {name: data for name, data in OutputReader(str(kept), {}).files().items() if name.startswith("images/")}
    beside, copied = split_labels(files, ".labels.png")
    by_number: defaultdict[int, dict[str, bytes]] = defaultdict(dict)
    for name, data in copied.items():
        number, _, ending = name.removeprefix("images/part.parquet/").partition(".")
        by_number[int(number)][ending] = data
    assert sorted(by_number) == list(range(3, IMAGES))
    for number, parts in by_number.items():
        assert parts["jpeg"] == images[f"{number:05}.jpg"]
        assert json.loads(parts["json"]) == {
            "id": 2**40 + number, "preview": "bm8gaW1hZ2U=", "tags": labelled.table["tags"][number].as_py(),
            "image_id": f"mine {number}", "photo": {"path": f"{number:05}.jpg"},
        }  # fmt: skip
        map_of = np.asarray(Image.open(io.BytesIO(beside[f"images/part.parquet/{number}.jpg"])))
        expected = np.zeros_like(map_of)
        for entry in rows[number]["annotations"]:
            expected[coco_mask.decode(entry["segmentation"]) == 1] = entry["category_id"]
        assert np.array_equal(map_of, expected)

    again = ray.run(jobs.filter.main, *request)
    assert (again.returncode, "Already copied" in again.stdout) == (0, True)
    fewer = [*request, "--overwrite", "--where", f"id >= {2**40 + 8}"]
    assert ray.run(jobs.filter.main, *fewer).returncode == 0
    left = {name for name in OutputReader(str(kept), {}).names() if name.startswith("images/")}
    assert left == {f"images/part.parquet/8.{ending}" for ending in ("jpeg", "json", "labels.png")}


def test_captions_beside_files_are_kept_and_copied(finished_run: FinishedRun, flags: list[str], tmp_path: Path) -> None:
    files = {f"day {name}": data for name, data in sample_images(2).items()}
    files |= {"day 00000.txt": b"first", "day 00001.txt": b"second", "day 00001.png": sample_images(3)["00002.jpg"]}
    write_folder(tmp_path / "in", files)
    ray = finished_run.ray
    run = ray.annotate(str(tmp_path / "in"), str(tmp_path / "labels"), *flags, "--keep-columns", "txt")
    assert run.returncode == 0, run.stderr
    rows = OutputReader(str(tmp_path / "labels"), {}).rows()
    assert {name: row["txt"] for name, row in rows.items()} == {
        "day 00000.jpg": "first", "day 00001.jpg": "second", "day 00001.png": "second",
    }  # fmt: skip
    request = ["--labels", str(tmp_path / "labels"), "--copy-to", str(tmp_path / "kept"), "--copy-as", "folder"]
    assert ray.run(jobs.filter.main, *request).returncode == 0
    copied = OutputReader(str(tmp_path / "kept/images"), {}).files()
    assert {name: data for name, data in copied.items() if name in files} == files
    assert {name: json.loads(copied[name])["image_id"] for name in copied.keys() - files.keys()} == {
        "day 00000.labels.json": "day 00000.jpg",
        "day 00001.labels.json": "day 00001.jpg",
        "day 00001.png.labels.json": "day 00001.png",
    }


def test_marked_images_are_labelled_again_with_other_words(
    finished_run: FinishedRun, flags: list[str], tmp_path: Path
) -> None:
    captions(tmp_path / "in")
    marks, ray = tmp_path / "marks.txt", finished_run.ray
    marks.write_text(format_image_ids(["2.tar/00005.jpg", "0.tar/00003.jpg", "0.tar/gone.jpg"]))
    words = tmp_path / "words.txt"
    words.write_text("something else\n")
    request = [str(tmp_path / "in"), str(tmp_path / "out"), *flags, "--vocab", str(words), "--relabel", str(marks)]
    request += ["--max-failed-fraction", "0.5"]
    run = ray.annotate(*request)
    assert run.returncode == 0, run.stderr
    rows = OutputReader(str(tmp_path / "out"), {}).rows()
    assert {name: row["status"] for name, row in rows.items()} == {
        "2.tar/00005.jpg": "ok", "0.tar/00003.jpg": "ok", "0.tar/gone.jpg": "missing",
    }  # fmt: skip
    assert "nothing to do" in ray.annotate(*request).stdout
    marks.write_text("2.tar/00005.jpg\n")
    changed = ray.annotate(*request)
    assert (changed.returncode, "changed: input.only_sha256" in changed.stderr) == (2, True)
    marks.write_text("9.tar/1.jpg\n2.tar/00005.jpg\n")
    foreign = ray.annotate(*request)
    assert foreign.returncode == 2
    assert "--relabel" in foreign.stderr
    assert "1 of 2 images are in no file of" in foreign.stderr
    assert "(such as 9.tar/1.jpg)" in foreign.stderr
