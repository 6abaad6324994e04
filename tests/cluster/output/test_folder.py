"""Who owns an output folder, and what counts in it after a crash at any point."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from cluster.output.folder import Output
from cluster.storage import Location, open_location
from schemas.errors import RequestError
from schemas.manifest import Manifest, labelling_manifest
from tests.schemas.test_manifest import MANIFEST, REQUEST


def output_at(folder: Path) -> Output:
    return Output(open_location(str(folder), "--output"))


def claim(output: Output, manifest: Manifest, overwrite: bool = False) -> None:
    output.check(manifest, overwrite)
    output.begin(manifest, overwrite)


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_claim_writes_the_manifest_and_may_be_repeated(tmp_path: Path) -> None:
    output = output_at(tmp_path / "a/b")
    claim(output, MANIFEST)
    claim(output, MANIFEST)
    assert json.loads((tmp_path / "a/b/manifest.json").read_text())["fingerprint"] == MANIFEST.fingerprint
    assert not output.is_finished()


def test_another_request_is_refused_and_the_change_named(tmp_path: Path) -> None:
    output = output_at(tmp_path)
    claim(output, MANIFEST)
    other = labelling_manifest(**REQUEST | {"settings": {"logit_scale": 1.0}})
    with pytest.raises(RequestError, match=r"changed: settings\.logit_scale"):
        claim(output, other)


def test_a_folder_of_somebody_else_is_refused_and_never_cleared(tmp_path: Path) -> None:
    write(tmp_path, "thesis.parquet", "notes.txt")
    for overwrite in (False, True):
        with pytest.raises(RequestError, match="no output of this job"):
            claim(output_at(tmp_path), MANIFEST, overwrite)
    assert names_in(tmp_path) == {"thesis.parquet", "notes.txt"}


def test_overwrite_deletes_own_files_only(tmp_path: Path) -> None:
    output = output_at(tmp_path)
    claim(output, MANIFEST)
    write(tmp_path, "rows/u_000000-0.parquet", "_checkpoint/u_000000.parquet", "_SUCCESS", "summary.json", "mine.txt")
    other = labelling_manifest(**REQUEST | {"settings": {}})
    claim(output, other, overwrite=True)
    assert names_in(tmp_path) == {"manifest.json", "mine.txt"}
    assert not output.is_finished()


def test_an_output_of_another_job_is_refused_and_never_cleared(tmp_path: Path) -> None:
    """``--copy-to`` with ``--overwrite`` must not delete the labels."""
    claim(output_at(tmp_path), MANIFEST)
    write(tmp_path, "rows/u_000000-0.parquet", "_SUCCESS")
    copies = Output(open_location(str(tmp_path), "--copy-to"), "", r"\d{6,}\.tar")
    for overwrite in (False, True):
        with pytest.raises(RequestError, match=f"--copy-to {tmp_path} holds files that are no output of this job"):
            claim(copies, Manifest({"labels": "", "ids_sha256": ""}), overwrite)
    assert names_in(tmp_path) == {"manifest.json", "rows/u_000000-0.parquet", "_SUCCESS"}


def test_overwrite_of_copies_deletes_numbered_shards_only(tmp_path: Path) -> None:
    copies = Output(open_location(str(tmp_path), "--copy-to"), "", r"\d{6,}\.tar")
    claim(copies, Manifest({"labels": "a"}))
    write(tmp_path, "000000.tar", "1234567.tar", "_SUCCESS", "my.tar", "mine.parquet")
    claim(copies, Manifest({"labels": "b"}), overwrite=True)
    assert names_in(tmp_path) == {"manifest.json", "my.tar", "mine.parquet"}


def test_an_overwrite_that_crashes_at_any_step_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a folder where a killed run left a part of a file."""
    other = labelling_manifest(**REQUEST | {"settings": {}})
    remove, replace = LocalFileSystem.rm, os.replace
    for steps in count():
        folder = tmp_path / str(steps)
        output = output_at(folder)
        claim(output, MANIFEST)
        write(
            folder,
            "_SUCCESS",
            "summary.json",
            "summary.json.part",
            "_checkpoint/u_000000.parquet",
            "rows/u_000000-0.parquet",
        )
        left = iter(range(steps))

        def step(original: Callable[..., None], *args: Any, left: Iterator[int] = left, **kwargs: Any) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            original(*args, **kwargs)

        with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
            patched.setattr(LocalFileSystem, "rm", lambda *args, step=step, **kwargs: step(remove, *args, **kwargs))
            patched.setattr(os, "replace", partial(step, replace))
            claim(output, other, overwrite=True)
            break
        claim(output, other, overwrite=True)
        assert names_in(folder) == {"manifest.json", "summary.json.part"}
        assert json.loads((folder / "manifest.json").read_text())["fingerprint"] == other.fingerprint
    assert steps == 5


def test_rows_files_count_by_the_same_rule_for_recovery_and_readers(tmp_path: Path) -> None:
    output = output_at(tmp_path)
    claim(output, MANIFEST)
    write(tmp_path, "rows/run_000000-0.parquet", "rows/run_000001-0.parquet", "_checkpoint/run/run_000001.parquet")
    counted = output.rows_files()
    assert [Path(path).name for path in counted] == ["run_000001-0.parquet"]
    output.recover()
    assert output.data_files() == output.rows_files() == counted


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "file")
    with pytest.raises(RequestError, match="cannot be used"):
        claim(output_at(tmp_path / "file"), MANIFEST)


def test_recover_keeps_what_was_committed_and_nothing_else(tmp_path: Path) -> None:
    output = output_at(tmp_path)
    claim(output, MANIFEST)
    write(
        tmp_path,
        "rows/run_000000-0.parquet",
        "rows/run_000000-1.parquet",
        "_checkpoint/run_000000.parquet",  # committed
        "rows/run_000001-0.parquet",
        "_checkpoint/run_000001.pending.parquet",  # died before the commit
        "_checkpoint/run_000002.pending.parquet",  # died before the rows
        "rows/run_000003-0.parquet",  # a straggler whose checkpoint is gone
        "rows/run_0000001-0.parquet",  # a name that begins like another
        "kept.parquet",  # somebody else's
        "rows/run_00-0.parquet",
    )
    output.recover()
    assert names_in(tmp_path) == {
        "manifest.json",
        "rows/run_000000-0.parquet",
        "rows/run_000000-1.parquet",
        "_checkpoint/run_000000.parquet",
        "kept.parquet",
        "rows/run_00-0.parquet",
    }


def test_finish_leaves_rows_and_marks_success(tmp_path: Path) -> None:
    output = output_at(tmp_path)
    claim(output, MANIFEST)
    write(tmp_path, "rows/run_000000-0.parquet", "_checkpoint/run_000000.parquet")
    output.write_summary({"images": 1})
    output.finish(output.data_files())
    assert output.is_finished()
    assert names_in(tmp_path) == {"manifest.json", "rows/run_000000-0.parquet", "_SUCCESS", "summary.json"}


def test_rows_that_appear_after_the_end_do_not_count(tmp_path: Path) -> None:
    """A run that was taken for dead may write once more."""
    output = output_at(tmp_path)
    claim(output, MANIFEST)
    write(tmp_path, "rows/run_000000-0.parquet")
    output.finish(output.data_files())
    write(tmp_path, "rows/late_000000-0.parquet", "_checkpoint/late/late_000000.parquet")
    assert [Path(path).name for path in output.rows_files()] == ["run_000000-0.parquet"]
    claim(output, MANIFEST)  # a run reopens it
    output.recover()
    assert "rows/run_000000-0.parquet" in names_in(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", '{"files": ["run_000000-0.parquet"]}'])
def test_a_foreign_mark_of_success_is_named(content: str, tmp_path: Path) -> None:
    output = output_at(tmp_path)
    claim(output, MANIFEST)
    (tmp_path / "_SUCCESS").write_text(content)
    with pytest.raises(RequestError, match=f"{tmp_path}/_SUCCESS is damaged"):
        output.is_finished()


def test_an_output_that_lost_rows_files_is_not_finished(tmp_path: Path) -> None:
    output = output_at(tmp_path)
    claim(output, MANIFEST)
    write(tmp_path, "rows/run_000000-0.parquet", "rows/run_000001-0.parquet")
    output.finish(output.data_files())
    (tmp_path / "rows/run_000001-0.parquet").unlink()
    assert not output.is_finished()
    claim(output, MANIFEST)
    assert [Path(path).name for path in output.rows_files()] == ["run_000000-0.parquet"]
    assert "_SUCCESS" not in names_in(tmp_path)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, "\xff"])
def test_a_damaged_document_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(RequestError, match=f"{tmp_path}/manifest.json is damaged"):
        output_at(tmp_path).check(MANIFEST, overwrite=False)


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("simplecache::s3://key:secret@bucket/x", True),
        ("tar://a.jpg::s3://key:secret@bucket/x.tar", True),
        ("abfs://container:secret@account.dfs.core.windows.net/x", True),
        ("abfs://container@account.dfs.core.windows.net/x", False),
    ],
)
def test_every_part_of_a_chain_is_checked(address: str, refused: bool) -> None:
    with pytest.raises(RequestError) as caught:
        open_location(address, "--input")  # adlfs is not installed
    assert ("carries credentials" in str(caught.value)) is refused
    assert "secret" not in str(caught.value)


def test_a_finished_checkpoint_is_never_removed_before_success_is_written(tmp_path: Path) -> None:
    """A crash between the two steps must not make a rerun do everything again."""
    output = output_at(tmp_path)
    claim(output, MANIFEST)
    write(tmp_path, "rows/run_000000-0.parquet", "_checkpoint/run_000000.parquet")
    (tmp_path / "_SUCCESS.part").mkdir()  # writing _SUCCESS fails
    with pytest.raises(OSError, match="_SUCCESS"):
        output.finish(output.data_files())
    assert (tmp_path / "_checkpoint/run_000000.parquet").exists()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://key:secret@bucket/x", "carries credentials"),
        ("https://host/x.tar?X-Amz-Signature=secret", "carries credentials"),
        ("wrong://bucket/x", "Protocol not known"),
    ],
)
def test_wrong_addresses_are_refused_without_repeating_secrets(address: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        open_location(address, "--input")
    assert "secret" not in str(caught.value)


def test_locations_keep_the_flag_and_are_equal_without_it() -> None:
    location = open_location("/a/b", "--root") / "c"
    assert str(location) == "--root /a/b/c"
    assert str(location.with_retries()) == "--root /a/b/c"
    assert location == open_location("/a/b/c", "--images")
    assert hash(location) == hash(open_location("/a/b/c", "--images"))


def test_only_a_client_of_s3_gets_more_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:1")
    location = (open_location("s3://bucket/a", "--output") / "b").with_retries()
    assert str(location) == "--output s3://bucket/a/b"
    assert location.fs.storage_options["config_kwargs"]["retries"]["max_attempts"] == 12
    memory = Location(fsspec.filesystem("memory"), "/a")
    assert memory.with_retries() is memory


def test_locations_join_and_print() -> None:
    assert (open_location("/a/b/", "") / "c").url == "/a/b/c"
    memory = Location(fsspec.filesystem("memory"), "/a")
    assert (memory / "b").url == "memory:///a/b"
