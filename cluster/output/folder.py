"""The output folder: its files, its owner, and the rows files that count after a crash.

::

    OUTPUT/rows/*.parquet          rows, and nothing else: programs read this folder as a table
    OUTPUT/manifest.json           the request, with its fingerprint
    OUTPUT/vocabulary.safetensors  text embeddings of the vocabulary
    OUTPUT/summary.json            counts, when the job is done
    OUTPUT/_SUCCESS                the job is done: its rows files and their sizes
    OUTPUT/_checkpoint/RUN/*.parquet  image ids of the rows files that count, until the job is done
    OUTPUT/_shards.arrow           versions of the shards (`cluster.output.changes`)
    OUTPUT/_lease.json             the run that is writing here (`cluster.output.lease`)

A rows file of a finished output counts if ``_SUCCESS`` lists it: a run that was taken for dead may still write others.
Before that, a rows file counts if its checkpoint is committed, or if ``_checkpoint/counted.json`` lists it (a finished
output that was reopened). Ray Data writes ``NAME.pending.parquet``, then the rows,
then renames the checkpoint to ``NAME.parquet``. Every run has its own folder for checkpoints. In a folder with older
checkpoints, Ray Data would load all ids, and read their images again only to drop them.

A job that copies images writes them into a folder of the same form (`cluster.copying`).
"""

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from textwrap import shorten
from typing import Any

from cliper.files import STORAGE_ERRORS
from cluster.output.files import atomic_write, file_name
from cluster.storage import Location
from schemas.embeddings import VocabularyEmbeddings, embeddings_from_bytes, embeddings_to_bytes
from schemas.errors import RequestError
from schemas.manifest import Manifest

PENDING_SUFFIX = ".pending.parquet"
LEASE = "_lease.json"
SHARDS = "_shards.arrow"
PROBE = "_preflight-"
"""Prefix of files that the preflight writes and deletes to see whether it can."""


class DamagedFileError(OSError, RequestError):
    """A file of an output is not what a job wrote there."""


@dataclass(frozen=True)
class Output:
    """An output folder that belongs to one manifest.

    Attributes:
        location: the folder.
        data_folder: the folder in it with the data files that the job writes; empty for the folder itself.
        pattern: regular expression for the names of these files.
        folders: names of other folders in it that are the job's.
    """

    location: Location
    data_folder: str = "rows"
    pattern: str = r"\w+_\d{6,}-\d+\.parquet"  # as Ray Data names them
    folders: tuple[str, ...] = ()

    @property
    def data(self) -> Location:
        """The folder of the data files."""
        return self.location / self.data_folder if self.data_folder else self.location

    @property
    def checkpoint(self) -> Location:
        return self.location / "_checkpoint"

    def with_retries(self) -> "Output":
        return replace(self, location=self.location.with_retries())

    def finished_files(self) -> dict[str, int] | None:
        """Names and sizes of the data files when the job was done; None if it is not.

        Raises:
            DamagedFileError: ``_SUCCESS`` is not what a job wrote there.
        """
        return self.read_files("_SUCCESS")

    def is_finished(self) -> bool:
        """True if the job is done, and its data files are all there as it left them."""
        files = self.finished_files()
        return files is not None and files.items() <= named(self.data_files()).items()

    def data_files(self) -> dict[str, int]:
        """Sizes of all data files by path, whether they count or not; empty if there is no such folder."""
        try:
            found = self.location.fs.ls(self.data.path, detail=True)
        except FileNotFoundError:
            return {}
        files = {str(info["name"]): int(info["size"]) for info in found if info["type"] == "file"}
        return {path: files[path] for path in sorted(files) if re.fullmatch(self.pattern, file_name(path))}

    def checkpoint_files(self) -> list[str]:
        """Paths of all runs' checkpoints, committed or pending."""
        if not self.location.fs.exists(self.checkpoint.path):
            return []
        return [path for path in map(str, self.location.fs.find(self.checkpoint.path)) if path.endswith(".parquet")]

    def rows_files(self) -> dict[str, int]:
        """Sizes by path of the rows files that count, by the rule above. A run may be writing meanwhile."""
        while True:
            finished, files = self.finished_files(), self.data_files()
            counted, committed = finished, set[str]()
            if counted is None:
                committed = {file_name(path) for path in self.checkpoint_files() if not path.endswith(PENDING_SUFFIX)}
                counted = self.read_files("_checkpoint/counted.json") or {}
            if self.finished_files() == finished:  # else a run has just finished or reopened it
                break
        return {
            path: size
            for path, size in files.items()
            if file_name(path) in counted or checkpoint_name(path) in committed
        }

    def check(self, manifest: Manifest, overwrite: bool) -> None:
        """Raises RequestError: the folder holds something else than this manifest's output, or cannot be read."""
        try:
            if not self.bucket_exists():
                raise FileNotFoundError(self.location.path)
            begun = self.read_json("manifest.json")
            foreign = self.foreign_names() if begun is None else []
        except STORAGE_ERRORS as error:
            raise self.location.refusal(error) from error
        if begun is not None and not manifest.is_same_kind(begun):
            foreign = ["manifest.json"]
        if foreign:
            raise RequestError(
                f"{self.location} holds files that are no output of this job "
                f"(such as {foreign[0]}): choose an empty folder"
            )
        if begun is not None and not overwrite and begun.get("fingerprint") != manifest.fingerprint:
            changed = ", ".join(manifest.changes(begun)[:5]) or "fingerprint"
            raise RequestError(
                f"{self.location} was begun with another request (changed: {changed}): "
                f"use the same settings, another output, or --overwrite to start over"
            )

    def begin(self, manifest: Manifest, overwrite: bool) -> None:
        """Write the manifest, after `check`. A finished output is reopened.

        Args:
            manifest: the request.
            overwrite: delete what earlier runs wrote.

        Raises:
            RequestError: the folder cannot be written.
        """
        try:
            if overwrite:
                self.clear()
            if overwrite or self.read_json("manifest.json") is None:
                self.write("manifest.json", manifest.to_json().encode("utf-8"))
            if self.finished_files() is not None:
                self.reopen()
        except STORAGE_ERRORS as error:
            raise self.location.refusal(error) from error

    def bucket_exists(self) -> bool:
        """False if the output's bucket certainly does not exist: some servers would create a mistyped one.

        Raises:
            PermissionError: on S3, not even the bucket's location may be asked for.
        """
        if not self.location.is_object_store:
            return True
        fs, bucket = self.location.fs, self.location.path.split("/")[0]
        try:
            if fs.exists(bucket):
                return True
        except PermissionError:  # a role may be allowed to write below a prefix and to see nothing else
            return True
        with contextlib.suppress(FileNotFoundError):
            if "s3" in fs.protocol:  # where `exists` takes a forbidden bucket for a missing one
                fs.call_s3("head_bucket", Bucket=bucket)
        return False

    def foreign_names(self) -> list[str]:
        """Names in the folder while it has no manifest. A crash may leave a part of the manifest, a lease or a probe:
        these are not foreign."""
        if not self.location.fs.exists(self.location.path):
            return []
        names = (file_name(path) for path in self.location.fs.ls(self.location.path, detail=False))
        left_behind = ("manifest.json.part", LEASE, PROBE)
        return sorted(name for name in names if name and not name.startswith(left_behind))

    def clear(self) -> None:
        """Delete what earlier runs of the job wrote, and nothing else.

        ``_SUCCESS`` goes first. The manifest stays until `begin` replaces it: after a crash in between, a run can
        continue the output or clear it again.
        """
        fs = self.location.fs
        own = [(self.location / name).path for name in ("_SUCCESS", "summary.json", "vocabulary.safetensors", SHARDS)]
        own += [(self.location / name).path for name in self.folders]
        for path in [*own, self.checkpoint.path, *self.data_files()]:
            if fs.exists(path):
                fs.rm(path, recursive=True)

    def recover(self) -> None:
        """Delete the rows files that do not count, and the checkpoints that were never committed."""
        found = self.data_files()  # before what counts: a run that was taken for dead may still commit
        counted = self.rows_files()
        pending = [path for path in self.checkpoint_files() if path.endswith(PENDING_SUFFIX)]
        for path in [*(path for path in found if path not in counted), *pending]:
            self.location.fs.rm_file(path)

    def reopen(self) -> None:
        """Turn a finished output into one that continues. Its rows files still count."""
        self.delete_checkpoint()  # of a run that was taken for dead
        self.write_files("_checkpoint/counted.json", self.rows_files())
        self.location.fs.rm_file((self.location / "_SUCCESS").path)

    def finish(self, files: Mapping[str, int]) -> None:
        """Mark the job as done. The checkpoint goes after that, because the rows files must count at every moment.

        Args:
            files: sizes by path of the data files that were found complete.
        """
        self.write_files("_SUCCESS", files)
        self.delete_checkpoint()

    def delete_checkpoint(self) -> None:
        if self.location.fs.exists(self.checkpoint.path):
            self.location.fs.rm(self.checkpoint.path, recursive=True)

    def write_files(self, name: str, files: Mapping[str, int]) -> None:
        self.write(name, json.dumps({"files": named(files)}).encode("utf-8"))

    def read_files(self, name: str) -> dict[str, int] | None:
        """What `write_files` wrote; None if it is not there. Raises DamagedFileError: it is something else."""
        document = self.read_json(name)
        if document is None:
            return None
        files = document.get("files")
        if not isinstance(files, dict):
            raise DamagedFileError(f"{(self.location / name).url} is damaged: it does not list files with their sizes")
        return files

    def write_summary(self, summary: dict[str, Any]) -> None:
        self.write("summary.json", json.dumps(summary, indent=1, ensure_ascii=False).encode("utf-8"))

    def write(self, name: str, content: bytes, writer: str = "") -> None:
        """Write a small file, as `atomic_write` does: a crash leaves the old content or none."""
        with atomic_write(self.location / name, writer) as file:
            file.write(content)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A document of the output; None if there is none.

        Raises:
            DamagedFileError: it is no JSON.
            OSError: it cannot be read.
        """
        place = self.location / name
        try:
            document = json.loads(place.fs.cat_file(place.path))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            raise DamagedFileError(f"{place.url} is damaged: {shorten(str(error), 100)}") from error
        return document if isinstance(document, dict) else {}

    def read_embeddings(self) -> VocabularyEmbeddings | None:
        """The vocabulary's embeddings if an earlier run wrote them."""
        try:
            return embeddings_from_bytes(self.location.fs.cat_file((self.location / "vocabulary.safetensors").path))
        except (FileNotFoundError, ValueError):
            return None

    def write_embeddings(self, embeddings: VocabularyEmbeddings) -> None:
        self.write("vocabulary.safetensors", embeddings_to_bytes(embeddings))


def named(files: Mapping[str, int]) -> dict[str, int]:
    """The same by name instead of path."""
    return {file_name(path): size for path, size in files.items()}


def checkpoint_name(rows_path: str) -> str:
    """``NAME-0.parquet`` holds rows whose checkpoint is ``NAME.parquet``."""
    return file_name(rows_path).removesuffix(".parquet").rpartition("-")[0] + ".parquet"
