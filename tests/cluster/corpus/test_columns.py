"""What is read beside the images: columns of tables, siblings in tar shards and folders."""

import datetime
import json
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cliper.preprocess import InputSpec
from cluster.corpus.columns import Columns, Kept, Siblings, read_tags
from cluster.corpus.inputs import open_input
from cluster.corpus.limits import DEFAULT_LIMITS, Limits
from cluster.corpus.prepare import KEPT, Preparer
from cluster.corpus.readers import Record
from cluster.corpus.sources import Corpus, kept_columns, list_corpus, only_images, read_shard
from cluster.corpus.tars import MAX_SAMPLE_IMAGES
from schemas.errors import RequestError
from schemas.rows import ROW_SCHEMA, Status
from tests.support.corpora import jpeg, tar_bytes, write_folder

IMAGE = jpeg(1)


def corpus_of(folder: Path, columns: Columns, limits: Limits = DEFAULT_LIMITS) -> Corpus:
    return list_corpus(open_input(str(folder)), "auto", None, limits=limits, columns=columns)


def records_of(folder: Path, columns: Columns, limits: Limits = DEFAULT_LIMITS) -> list[Record]:
    corpus = corpus_of(folder, columns, limits)
    return [record for shard in corpus.shards for record in read_shard(corpus, shard)]


def kept(folder: Path, columns: Columns) -> tuple[pa.Schema, list[dict[str, Any]]]:
    """The kept columns and tags of every image, as prepared rows have them."""
    corpus = corpus_of(folder, columns)
    prepare = Preparer(InputSpec(16, 16), DEFAULT_LIMITS, kept=kept_columns(corpus))
    rows = [prepare(record) for shard in corpus.shards for record in read_shard(corpus, shard)]
    table = prepare.table(rows)
    names = ["image_id", "status", "error", "tags", *(name for name in table.column_names if name.startswith(KEPT))]
    table = table.select(names).rename_columns([name.removeprefix(KEPT) for name in names])
    return prepare.kept.schema, table.to_pylist()


def write_tar(folder: Path, members: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "a.tar").write_bytes(tar_bytes(members))
    return folder


@pytest.mark.parametrize("order", ["as WebDataset sorts", "siblings first"])
def test_siblings_are_those_of_their_sample(tmp_path: Path, order: str) -> None:
    members = {
        "0.jpg": IMAGE, "0.json": b'{"id": 7, "caption": "a \xc3\xbc"}', "0.txt": b"zero\n",
        "x/0.jpg": IMAGE,
        "x/1.jpg": IMAGE, "x/1.mask.jpg": IMAGE, "x/1.txt": b"one", "x/1.npy": b"other",
    }  # fmt: skip
    if order == "siblings first":
        members = dict(sorted(members.items(), key=lambda item: (item[0].partition(".")[0], "jpg" in item[0])))
    schema, rows = kept(write_tar(tmp_path / "in", members), Columns(keep=("txt", "id", "caption", "json", "uri")))
    assert schema == pa.schema([(name, pa.string()) for name in ("txt", "id", "caption", "json", "input_uri")])
    nothing = dict.fromkeys(["txt", "id", "caption", "json", "input_uri"])
    found = {row.pop("image_id"): row for row in rows}
    assert {row.pop("status") for row in rows} == {Status.OK}
    assert [row.pop("error") or row.pop("tags") for row in rows] == [None] * 4
    zero = {"txt": "zero\n", "id": "7", "caption": "a ü", "json": '{"id": 7, "caption": "a ü"}'}
    assert found == {
        "a.tar/0.jpg": nothing | zero,
        "a.tar/x/0.jpg": nothing,
        "a.tar/x/1.jpg": nothing | {"txt": "one"},
        "a.tar/x/1.mask.jpg": nothing | {"txt": "one"},
    }


def test_siblings_of_files_are_found_in_their_folder(tmp_path: Path) -> None:
    files = {"x/0.jpg": IMAGE, "x/0.txt": b"zero", "y/0.jpg": IMAGE, "x/lonely.txt": b"", "x/0.npy": b""}
    folder = write_folder(tmp_path / "in", files)
    _, rows = kept(folder, Columns(keep=("txt",)))
    assert {row["image_id"]: row["txt"] for row in rows} == {"x/0.jpg": "zero", "y/0.jpg": None}
    assert corpus_of(folder, Columns(keep=("txt",))).passed_over == {".npy": 1, ".txt": 1}
    assert corpus_of(folder, Columns()).passed_over == {".npy": 1, ".txt": 2}


def test_what_is_kept_is_not_passed_over(tmp_path: Path) -> None:
    folder = write_tar(tmp_path / "in", {"0.jpg": IMAGE, "0.json": b"{}", "0.txt": b"", "0.cls": b"3"})
    (record,) = records_of(folder, Columns(keep=("cls", "caption")))
    assert record.passed_over == [{"ending": ".txt", "files": 1}]
    (record,) = records_of(folder, Columns(everything=True))
    assert record.beside == {"json": b"{}", "txt": b"", "cls": b"3"}
    assert record.passed_over == []


def test_siblings_that_do_not_follow_their_image_are_passed_over(tmp_path: Path) -> None:
    folder = write_tar(tmp_path / "in", {"0.jpg": IMAGE, "1.jpg": IMAGE, "1.TXT": b"one", "0.txt": b"zero"})
    *_, last = records_of(folder, Columns(keep=("txt",)))
    assert last.beside == {"txt": b"one"}
    assert last.passed_over == [{"ending": ".txt", "files": 1}]


def test_siblings_that_differ_in_case_are_both_copied(tmp_path: Path) -> None:
    folder = write_tar(tmp_path / "in", {"0.jpg": IMAGE, "0.txt": b"a", "0.TXT": b"b"})
    (record,) = records_of(folder, Columns(everything=True))
    assert record.beside == {"txt": b"a", "TXT": b"b"}


def test_columns_of_tables_keep_their_types_and_values(tmp_path: Path) -> None:
    columns = {
        "image": pa.array([IMAGE, IMAGE]),
        "id": pa.array([2**63 + 1, None], pa.uint64()),
        "width": pa.array([1, 2], pa.int8()),
        "seen": pa.array([1234567890123456789, 5], pa.timestamp("ns", tz="Europe/Berlin")),
        "price": pa.array([Decimal("1.20"), None]),
        "boxes": pa.array([[{"x": 1.5, "label": "a"}], []]),
        "kind": pa.array(["a", "b"]).dictionary_encode(),
        "raw": pa.array([b"\0\xff", b""]),
        "day": pa.array([datetime.date(2020, 2, 29), None]),
    }
    table = pa.table(columns)
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in/a.parquet")
    names = tuple(columns)[1:]
    corpus = corpus_of(tmp_path / "in", Columns(keep=names))
    prepare = Preparer(InputSpec(16, 16), DEFAULT_LIMITS, kept=kept_columns(corpus))
    rows = [prepare(record) for record in read_shard(corpus, corpus.shards[0])]
    found = prepare.table(rows)
    for name in names:
        stored = "input_width" if name == "width" else name
        assert found[KEPT + stored].combine_chunks() == table[name].combine_chunks().cast(found[KEPT + stored].type)
    assert prepare.kept.schema.field("kind").type == pa.string()
    assert prepare.kept.schema.field("seen").type == pa.timestamp("ns", tz="Europe/Berlin")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(keep=("captoin",)), "it has no column captoin (did you mean caption?)"),
        (Columns(keep=("nothing like it",)), "it has no column nothing like it (it has photo, drawing, caption, n)"),
        (Columns(image="caption"), "its column caption has string and not the bytes of images"),
        (Columns(image="foto"), "it has no column foto (did you mean photo?)"),
        (Columns(image="photo", tags="n"), "its column n has int64 and not names of classes"),
        (Columns(), "it has several binary columns (photo, drawing): name the one with the images (--image-column)"),
    ],
)
def test_a_wrong_column_is_refused_before_the_run(tmp_path: Path, columns: Columns, message: str) -> None:
    table = pa.table({"photo": [IMAGE], "drawing": [IMAGE], "caption": ["a"], "n": [1]})
    pq.write_table(table, tmp_path / "a.parquet")
    if columns.keep:
        columns = Columns("photo", columns.keep)
    with pytest.raises(RequestError) as error:
        corpus_of(tmp_path, columns)
    assert str(error.value) == f"--input {tmp_path / 'a.parquet'}: {message}"


def test_a_later_table_without_the_column_is_a_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"photo": [IMAGE], "id": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"photo": [IMAGE]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"photo": [IMAGE], "id": ["one"]}), tmp_path / "c.parquet")
    _, rows = kept(tmp_path, Columns("photo", ("id",)))
    assert [(row["image_id"], row["status"], row["id"]) for row in rows] == [
        ("a.parquet/0", Status.OK, 1),
        ("b.parquet", Status.BROKEN_SHARD, None),
        ("c.parquet/0", Status.BAD_COLUMN, None),
    ]  # fmt: skip
    assert "it has no column id" in rows[1]["error"]
    assert rows[2]["error"].startswith(f"{tmp_path}/c.parquet#row=0: ")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [IMAGE], "uri": ["a"], "input_URI": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(RequestError, match="--keep-columns: two columns would be called input_URI"):
        kept_columns(corpus_of(tmp_path, Columns(keep=("uri", "input_URI"))))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"0.json": b"{"}, "its .json is damaged"),
        ({"0.json": b"[1]"}, "its .json has no object with keys"),
        ({"0.json": b"[" * 100_000}, "its .json is damaged"),
        ({"0.json": b"\xff"}, "its .json is not UTF-8 text (byte 0)"),
        ({"0.json": b" " * 2_000_001}, "its .json has more than 2,000,000 bytes (--max-file-mb)"),
    ],
)
def test_a_sibling_that_cannot_be_read_costs_its_image(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    folder = write_tar(tmp_path / "in", {"0.jpg": IMAGE, **members, "1.jpg": IMAGE})
    prepare = Preparer(InputSpec(16, 16), DEFAULT_LIMITS, kept=Kept.of(Columns(keep=("id",)), {}))
    first, second = map(prepare, records_of(folder, Columns(keep=("id",)), Limits(max_file_mb=2)))
    assert (first["status"], second["status"]) == (Status.BAD_COLUMN, Status.OK)
    assert reason in first["error"]
    assert first["error"].startswith("tar://0.jpg::")


def test_too_many_images_of_one_sample_are_said(tmp_path: Path) -> None:
    members = {f"a.{number}.jpg": IMAGE for number in range(MAX_SAMPLE_IMAGES + 1)}
    folder = write_tar(tmp_path / "in", members)
    assert len(records_of(folder, Columns())) == MAX_SAMPLE_IMAGES + 1
    *images, last = records_of(folder, Columns(keep=("txt",)))
    assert [record.status for record in images] == [Status.OK] * MAX_SAMPLE_IMAGES
    assert last.status == Status.BROKEN_SHARD
    assert f"more than {MAX_SAMPLE_IMAGES} images are called a" in (last.error or "")


def test_the_images_before_a_damage_keep_their_siblings(tmp_path: Path) -> None:
    data = tar_bytes({"0.jpg": IMAGE, "0.txt": b"zero", "1.jpg": IMAGE})
    (tmp_path / "a.tar").write_bytes(data[: 512 + (len(IMAGE) + 511) // 512 * 512 + 1024 + 512 + 100])
    first, last = records_of(tmp_path, Columns(keep=("txt",)))
    assert first.beside == {"txt": b"zero"}
    assert last.status == Status.BROKEN_SHARD


@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_the_ending_chooses_the_images(tmp_path: Path, kind: str) -> None:
    files = {"0.jpg": IMAGE, "0.mask.jpg": IMAGE, "1.JPG": IMAGE, "2.png": IMAGE}
    folder = (write_tar if kind == "tar" else write_folder)(tmp_path / "in", files)
    records = records_of(folder, Columns(image="jpg"))
    assert [record.image_id.removeprefix("a.tar/") for record in records] == ["0.jpg", "1.JPG"]
    passed_over = corpus_of(folder, Columns(image="jpg")).passed_over
    if kind == "tar":
        passed_over = {entry["ending"]: entry["files"] for entry in records[-1].passed_over or ()}
    assert passed_over == {".jpg": 1, ".png": 1}


@pytest.mark.parametrize(
    ("value", "tags"),
    [
        (None, None), ([], []), ("", []), ("dog", ["dog"]), (" dog ;cat, big\n", ["dog", "cat, big"]),
        (["a;b"], ["a;b"]),
    ],
)  # fmt: skip
def test_tags_are_lists_or_text(value: Any, tags: list[str] | None) -> None:
    assert read_tags(value) == tags


@pytest.mark.parametrize("value", [3, [1], {"dog": 1}])
def test_other_tags_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="its tags are neither text nor a list of texts"):
        read_tags(value)


def test_a_key_that_looks_like_a_sibling_is_the_sibling() -> None:
    siblings = Siblings({"json": json.dumps({"txt": "inside", "n": [1]}).encode(), "txt": b"beside"})
    assert (siblings.text("txt"), siblings.text("n"), siblings.text("missing")) == ("beside", "[1]", None)


def ids_of(corpus: Corpus) -> Iterable[tuple[str, str]]:
    return [(record.image_id, record.status) for shard in corpus.shards for record in read_shard(corpus, shard)]


def test_only_the_images_of_a_list_are_read(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a", "b", "b/c"):
        (tmp_path / f"{name}.tar").write_bytes(tar_bytes({f"{number}.jpg": IMAGE for number in range(3)}))
    wanted = ["b/c.tar/2.jpg", "b.tar/0.jpg", "b.tar/gone.jpg"]
    corpus, unknown = only_images(corpus_of(tmp_path, Columns()), [*wanted, "x.tar/1.jpg", "a"])
    assert unknown == ["x.tar/1.jpg", "a"]
    assert ids_of(corpus) == [
        ("b.tar/0.jpg", Status.OK), ("b.tar/gone.jpg", Status.MISSING), ("b/c.tar/2.jpg", Status.OK),
    ]  # fmt: skip
    *_, last = read_shard(corpus, corpus.shards[0])
    assert last.shard_images == 2


def test_only_some_files_of_a_folder_are_read(tmp_path: Path) -> None:
    write_folder(tmp_path, {"x/0.jpg": IMAGE, "x/1.jpg": IMAGE})
    corpus, unknown = only_images(corpus_of(tmp_path, Columns()), ["x/1.jpg"])
    assert (ids_of(corpus), unknown) == ([("x/1.jpg", Status.OK)], [])


def test_no_kept_column_takes_the_name_of_a_rows_column() -> None:
    schema = Kept.of(Columns(keep=tuple(name.upper() for name in ROW_SCHEMA.names)), {}).schema
    assert schema.names == [f"input_{name.upper()}" for name in ROW_SCHEMA.names]
