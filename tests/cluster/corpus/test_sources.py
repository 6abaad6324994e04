"""Listing a corpus and reading its shards, good ones and damaged ones."""

import io
import os
import socket
import tarfile
from pathlib import Path
from typing import Literal

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.corpus.inputs import open_input
from cluster.corpus.readers import Record, Shard
from cluster.corpus.sources import Corpus, CorpusFormat, list_corpus, passed_over_sentence, read_shard
from cluster.storage import Location, open_location
from schemas.errors import RequestError
from schemas.rows import Status
from tests.support.corpora import sample_images, tar_bytes, write_folder, write_tables, write_tars
from tests.support.jobs import environment
from tests.support.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY


def corpus_at(folder: Path | str, wanted: Literal["auto"] | CorpusFormat = "auto", limit: int | None = None) -> Corpus:
    return list_corpus(open_input(str(folder)), wanted, open_location("/nowhere/out", "--output"), limit)


def records_of(corpus: Corpus) -> list[Record]:
    return [record for shard in corpus.shards for record in read_shard(corpus, shard)]


def test_tar_shards(tmp_path: Path) -> None:
    images = sample_images(5)
    corpus = corpus_at(write_tars(tmp_path / "in", images, per_shard=2))
    records = records_of(corpus)
    assert corpus.format == "tar"
    assert [record.image_id for record in records] == [
        f"{i // 2:05}.tar/{name}" for i, name in enumerate(sorted(images))
    ]
    assert [record.data for record in records] == [images[name] for name in sorted(images)]
    assert {record.status for record in records} == {Status.OK}


def test_a_key_that_s3fs_cannot_read_is_named(s3: dict[str, str]) -> None:
    client = boto3.client("s3", endpoint_url=s3["AWS_ENDPOINT_URL"], aws_access_key_id=ACCESS_KEY,
                          aws_secret_access_key=SECRET_KEY, region_name="us-east-1")  # fmt: skip
    for name in ("x.jpg?versionId=3.jpg", "y.jpg"):
        client.put_object(Bucket=BUCKET, Key=f"versions/{name}", Body=b"content")
    with environment(s3):
        odd, plain = records_of(corpus_at(f"s3://{BUCKET}/versions"))
    assert (odd.status, plain.status) == (Status.MISSING, Status.OK)
    assert odd.error is not None
    assert odd.error.endswith("x.jpg?versionId=3.jpg: s3fs cannot read names with ?versionId=")


def test_uri_of_a_tar_member_opens_with_fsspec(tmp_path: Path) -> None:
    corpus = corpus_at(write_tars(tmp_path / "in", {"a/b.jpg": b"content"}, per_shard=1))
    (record,) = records_of(corpus)
    with fsspec.open(record.uri) as file:
        assert file.read() == b"content"


def test_other_members_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with tarfile.open(folder / "x.tar.gz", "w:gz") as archive:
        for name, kind in [
            ("a.json", tarfile.REGTYPE),
            ("dir.jpg", tarfile.DIRTYPE),
            ("link.jpg", tarfile.SYMTYPE),
            ("device.jpg", tarfile.CHRTYPE),
            ("._a.jpg", tarfile.REGTYPE),
            ("a.JPG", tarfile.REGTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = 3 if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(b"abc"))
    (record,) = records_of(corpus_at(folder))
    assert (record.image_id, record.data) == ("x.tar.gz/a.JPG", b"abc")


@pytest.mark.parametrize("kind", ["tar", "parquet", "jpg"])
def test_names_that_are_not_utf8_can_be_stored(kind: str, tmp_path: Path) -> None:
    content = {"tar": tar_bytes({"a.txt": b"x"}), "parquet": b"damaged", "jpg": b""}[kind]
    (tmp_path / os.fsdecode(b"caf\xe9." + kind.encode())).write_bytes(content)
    (record,) = records_of(corpus_at(tmp_path))
    assert record.status != Status.OK
    for text in (record.image_id, record.uri, record.shard, record.error):
        assert f"caf\\xe9.{kind}" in str(text)
        pa.array([text], pa.string()).validate(full=True)


def test_repeated_and_odd_names_stay_unique(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with tarfile.open(folder / "x.tar", "w", encoding="utf-8", errors="surrogateescape") as archive:
        for name in ["a.jpg", "a.jpg", "../../a.jpg", "/a.jpg", "\udcff.jpg", "a.jpg"]:
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    ids = [record.image_id for record in records_of(corpus_at(folder))]
    assert len(set(ids)) == 6
    assert ids[0] == "x.tar/a.jpg"
    assert "x.tar/\\xff.jpg" in ids
    pa.array(ids, pa.string()).validate(full=True)


@settings(max_examples=50)
@given(st.integers(0, 10_239))
def test_a_cut_tar_yields_its_whole_members_and_says_where_it_broke(cut: int) -> None:
    images = {f"{i}.jpg": bytes([i]) * 1000 for i in range(5)}
    whole = tar_bytes(images)
    assert len(whole) == 10_240
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/cut.tar", whole[:cut])
    root = Location(fs, "/")
    records = list(read_shard(Corpus(root, "tar", ()), Shard("cut.tar", "/cut.tar")))
    whole_members = sum(cut >= 1536 * number + 512 + 1000 for number in range(5))
    complete = [record.data for record in records if record.status == Status.OK]
    assert complete == list(images.values())[:whole_members]
    broken = [record for record in records if record.status != Status.OK]
    ends_with_its_mark = cut >= 5 * 1536 + 512
    assert [record.status for record in broken] == [] if ends_with_its_mark else [Status.BROKEN_SHARD]
    if broken:
        assert f"cut.tar: the tar shard is damaged after {whole_members} images" in str(broken[0].error)
        assert broken[0].image_id == "cut.tar"


@pytest.mark.parametrize("member", [0, 2, 4])
def test_a_damaged_header_in_the_middle_is_not_taken_for_the_end(member: int) -> None:
    content = bytearray(tar_bytes({f"{i}.jpg": bytes([i]) * 1000 for i in range(5)}))
    content[member * 1536 : member * 1536 + 200] = b"\xaa" * 200
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/damaged.tar", bytes(content))
    records = list(read_shard(Corpus(Location(fs, "/"), "tar", ()), Shard("damaged.tar", "/damaged.tar")))
    assert [record.status for record in records] == [Status.OK] * member + [Status.BROKEN_SHARD]


@pytest.mark.parametrize("hugging_face", [False, True])
def test_tables(hugging_face: bool, tmp_path: Path) -> None:
    images = sample_images(7)
    corpus = corpus_at(write_tables(tmp_path / "in", images, per_shard=4, hugging_face=hugging_face))
    records = records_of(corpus)
    assert corpus.format == "parquet"
    assert [record.data for record in records] == [images[name] for name in sorted(images)]
    assert [record.image_id for record in records][3:5] == ["00000.parquet/3", "00001.parquet/0"]
    assert records[4].uri.endswith("00001.parquet#row=0")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"a", None, b""], pa.binary()),
        pa.array([{"bytes": b"a"}, None, {"bytes": None}], pa.struct([("bytes", pa.large_binary())])),
    ],
    ids=["binary", "struct"],
)
def test_null_and_empty_bytes_are_failures(column: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": column}), tmp_path / "t.parquet")
    records = records_of(corpus_at(tmp_path))
    assert [record.status for record in records] == [Status.OK, Status.EMPTY, Status.EMPTY]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"]}, "no binary column"),
        ({"one": [b"a"], "two": [b"b"]}, "several binary columns"),
    ],
)
def test_tables_without_a_clear_image_column_are_refused(
    columns: dict[str, list[object]], message: str, tmp_path: Path
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(RequestError, match=message):
        corpus_at(tmp_path)


def test_a_later_table_of_another_kind_is_a_failure_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"a"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "2.parquet")
    (tmp_path / "3.parquet").write_bytes(b"no table at all")
    records = records_of(corpus_at(tmp_path))
    assert [record.status for record in records] == [Status.OK, Status.BROKEN_SHARD, Status.BROKEN_SHARD]
    assert "2.parquet" in str(records[1].error)


def test_a_corrupt_row_group_costs_its_own_rows_only(tmp_path: Path) -> None:
    images = sample_images(9)
    path = write_tables(tmp_path, images, per_shard=9) / "00000.parquet"
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    records = records_of(corpus_at(tmp_path))
    assert [record.status for record in records] == [Status.OK] * 3 + [Status.BROKEN_SHARD] + [Status.OK] * 3
    assert records[3].image_id == "00000.parquet/3-5"
    assert "row group 1 is damaged, rows 3-5 are lost" in str(records[3].error)


def test_folder_of_images(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a/1.jpg": b"x", "2.PNG": b"y", "notes.txt": b"z", ".hidden/3.jpg": b"h", "4.webp": b""})
    corpus = corpus_at(tmp_path)
    assert corpus.format == "folder"
    assert [(record.image_id, record.status) for record in records_of(corpus)] == [
        ("2.PNG", Status.OK),
        ("4.webp", Status.EMPTY),
        ("a/1.jpg", Status.OK),
    ]


def test_a_file_that_vanished_is_a_failure_row(tmp_path: Path) -> None:
    corpus = corpus_at(write_folder(tmp_path, {"1.jpg": b"x"}))
    (tmp_path / "1.jpg").unlink()
    assert records_of(corpus)[0].status == Status.MISSING


def test_a_single_file_and_a_pattern(tmp_path: Path) -> None:
    write_folder(tmp_path, {"day1/a.jpg": b"x", "day2/b.jpg": b"y", "night/c.jpg": b"z"})
    (single,) = records_of(corpus_at(tmp_path / "day1/a.jpg"))
    assert single.image_id == "a.jpg"
    assert [record.image_id for record in records_of(corpus_at(f"{tmp_path}/day*/*.jpg"))] == [
        "day1/a.jpg",
        "day2/b.jpg",
    ]


def test_the_output_below_the_input_is_never_read(tmp_path: Path) -> None:
    write_folder(tmp_path, {"1.jpg": b"x", "labels/rows.parquet": b"y", "labels/2.jpg": b"z"})
    output = open_location(f"{tmp_path}/labels", "--output")
    corpus = list_corpus(open_input(str(tmp_path)), "auto", output)
    assert [shard.name for shard in corpus.shards] == ["1.jpg"]


def test_what_is_passed_over_is_counted_by_ending(tmp_path: Path) -> None:
    names = ["1.jpg", "a.json", "b/c.json", "d.TXT", "LICENSE", ".hidden", "x/.DS_Store", "_checkpoint/run/a.parquet"]
    corpus = corpus_at(write_folder(tmp_path, dict.fromkeys(names, b"x")))
    assert corpus.passed_over == {".json": 2, ".txt": 1, "without ending": 1}
    assert passed_over_sentence(corpus.passed_over) == "passed over: 4 files: 2 .json, 1 .txt, 1 without ending"


def test_members_of_a_tar_that_are_passed_over_are_counted_on_its_last_record(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes({"1.jpg": b"x", "1.json": b"{}", "2.cls": b"3", "2.json": b"{}"}))
    (tmp_path / "b.tar").write_bytes(tar_bytes({"1.json": b"{}", "._1.jpg": b"mac"}))
    first, second = records_of(corpus_at(tmp_path))
    assert first.passed_over == [{"ending": ".json", "files": 2}, {"ending": ".cls", "files": 1}]
    assert (second.status, second.shard_images) == (Status.NO_IMAGES, 1)
    assert second.error == f"{tmp_path}/b.tar: it has no images (passed over: 1 file: 1 .json)"


def test_names_of_cameras_are_images(tmp_path: Path) -> None:
    names = ["_MG_1234.JPG", "_DSC0001.jpg", "_DCIM/1.jpe", "a.avif", "b.jp2", "c.heic", "d.pgm"]
    corpus = corpus_at(write_folder(tmp_path, dict.fromkeys(names, b"x")))
    assert [shard.name for shard in corpus.shards] == sorted(names)
    (tmp_path / "in.tar").write_bytes(tar_bytes(dict.fromkeys(names, b"x")))
    assert [record.image_id for record in records_of(corpus_at(tmp_path / "in.tar"))] == [f"in.tar/{n}" for n in names]


def test_braces(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"{number:03}.tar": tar_bytes({"a.jpg": b"x"}) for number in range(12)})
    corpus = corpus_at(f"{tmp_path}/{{008..010}}.tar")
    assert [shard.name for shard in corpus.shards] == ["008.tar", "009.tar", "010.tar"]
    with pytest.raises(RequestError, match=r"/012\.tar: it does not exist"):
        corpus_at(f"{tmp_path}/{{011..013}}.tar")
    with pytest.raises(RequestError, match="stands for more than 1,000,000 paths"):
        corpus_at(f"{tmp_path}/{{0..9999999}}.tar")


def test_a_list_of_addresses(tmp_path: Path) -> None:
    write_folder(tmp_path, {"day1/a.jpg": b"x", "day2/b.jpg": b"y", "day2/c.jpg": b"z", "day3/d.jpg": b"z"})
    addresses = [tmp_path / "day1", tmp_path / "day2/b.jpg", tmp_path / "day[3]"]
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{address}\n\n" for address in addresses))
    corpus = corpus_at(f"@{listed}")
    assert [shard.name for shard in corpus.shards] == ["day1/a.jpg", "day2/b.jpg", "day3/d.jpg"]
    assert open_input(f"@{listed}").address == f"@{listed}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "list.txt cannot be read: it does not exist"),
        (b"\n \n", "lists nothing: write one address on each line"),
        (b"\xff\xfe", "is no UTF-8 text"),
        (b"/a\nmemory://b", "lists addresses on several file systems"),
        (b"/nowhere/at/all", "--input /nowhere/at/all: it does not exist"),
    ],
)
def test_a_wrong_list_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(RequestError, match=message):
        corpus_at(f"@{tmp_path}/list.txt")


@pytest.mark.parametrize("name", ["a[1]", "a*", "who?", "{a,b}", "s::t", "50%", "@home"])
def test_names_that_exist_are_taken_as_they_are_written(name: str, tmp_path: Path) -> None:
    write_folder(tmp_path, {f"{name}/1.jpg": b"x", "a1/2.jpg": b"y", "ab/3.jpg": b"z"})
    assert [shard.name for shard in corpus_at(tmp_path / name).shards] == ["1.jpg"]


def test_a_file_that_changes_has_another_version(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.jpg": b"x", "b.jpg": b"y", "c.jpg": b"z"})
    before = {shard.name: shard.version for shard in corpus_at(tmp_path).shards}
    (tmp_path / "a.jpg").write_bytes(b"longer")
    os.utime(tmp_path / "b.jpg", ns=(1, 1))
    after = {shard.name: shard.version for shard in corpus_at(tmp_path).shards}
    assert [name for name in before if after[name] != before[name]] == ["a.jpg", "b.jpg"]


def test_pipes_and_sockets_are_left_alone(tmp_path: Path) -> None:
    write_folder(tmp_path, {"1.jpg": b"x"})
    os.mkfifo(tmp_path / "2.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "3.jpg"))
        assert [shard.name for shard in corpus_at(tmp_path).shards] == ["1.jpg"]
    with pytest.raises(RequestError, match="is empty"):
        corpus_at(tmp_path / "2.jpg")


@pytest.mark.parametrize(
    ("files", "wanted", "message"),
    [
        ({"a.txt": b"", "b.md": b""}, "auto", r"is empty: .* \(passed over: 2 files: 1 \.md, 1 \.txt\)"),
        ({}, "auto", "it does not exist"),
        ({"a.txt": b""}, "auto", "is empty"),
        ({"a.jpg": b"", "b.tar": b""}, "auto", "several formats: choose one with --format tar or folder"),
        ({"a.jpg": b""}, "tar", "no files for --format tar"),
    ],
)
def test_wrong_inputs_are_refused(
    files: dict[str, bytes], wanted: Literal["auto"] | CorpusFormat, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    write_folder(folder, files)
    with pytest.raises(RequestError, match=message):
        corpus_at(folder, wanted)


@pytest.mark.parametrize("kind", ["tar", "parquet", "folder"])
@pytest.mark.parametrize("limit", [1, 4, 5, 100])
def test_limit_takes_the_first_images(kind: str, limit: int, tmp_path: Path) -> None:
    images = sample_images(10)
    if kind == "tar":
        write_tars(tmp_path, images, per_shard=4)
    elif kind == "parquet":
        write_tables(tmp_path, images, per_shard=4)
    else:
        write_folder(tmp_path, images)
    everything = [record.image_id for record in records_of(corpus_at(tmp_path))]
    assert [record.image_id for record in records_of(corpus_at(tmp_path, limit=limit))] == everything[:limit]
