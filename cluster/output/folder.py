"""The output folder: what lies in it, whose it is, and how a run that was cut off goes on.

::

    OUTPUT/*.parquet               rows
    OUTPUT/manifest.json           what was asked for, with its fingerprint
    OUTPUT/vocabulary.safetensors  text embeddings of the vocabulary
    OUTPUT/summary.json            counts, once the job is done
    OUTPUT/_SUCCESS                the job is done
    OUTPUT/_checkpoint/RUN/*.parquet  image ids of the rows files that count, until the job is done
    OUTPUT/_lease.json             which run is writing here (`cluster.output.lease`)

One rule holds at every moment: a rows file counts if and only if its committed checkpoint is there, or ``_SUCCESS``
is, or it is on the list ``_checkpoint/counted.json`` (of a finished output that was opened again). Ray Data writes
``NAME.pending.parquet``, then the rows, then renames the checkpoint to ``NAME.parquet``. Every run has a folder of its
own for its checkpoints: in one that is not empty, Ray Data would load all ids and drop their rows after reading them
again; here, what is done is not read (`cluster.output.resume`).
"""

import json
import posixpath
from dataclasses import dataclass
from typing import Any

from cluster.storage import STORAGE_ERRORS, Location, storage_problem
from schemas.embeddings import EmbeddingsError, VocabularyEmbeddings, embeddings_from_bytes, embeddings_to_bytes
from schemas.errors import RequestError
from schemas.manifest import Manifest, changed_fields

PENDING_SUFFIX = ".pending.parquet"
LEASE = "_lease.json"
PROBE = "_preflight-"
"""Begins the names of files that are written and deleted to see whether that is possible."""


@dataclass(frozen=True)
class Output:
    """An output folder that belongs to one manifest."""

    location: Location

    @property
    def checkpoint(self) -> Location:
        return self.location / "_checkpoint"

    def is_finished(self) -> bool:
        return bool(self.location.fs.exists((self.location / "_SUCCESS").path))

    def checkpoint_files(self) -> list[str]:
        """Paths of all runs' checkpoints, committed or pending."""
        if not self.location.fs.exists(self.checkpoint.path):
            return []
        return [str(path) for path in self.location.fs.find(self.checkpoint.path)]

    def rows_files(self) -> list[str]:
        """Paths of all rows files, counting or not."""
        return parquet_files(self.location)

    def check(self, manifest: Manifest, overwrite: bool) -> None:
        """Raises RequestError: the folder holds something else than this manifest's output, or cannot be read."""
        try:
            if not self.bucket_exists():
                raise FileNotFoundError(self.location.path)
            begun = self.read_json("manifest.json")
            foreign = self.foreign_names() if begun is None else []
        except (*STORAGE_ERRORS, json.JSONDecodeError) as error:
            raise self.unusable(error) from error
        if foreign:
            raise RequestError(
                f"--output {self.location.url} holds files that are no output of this job "
                f"(such as {foreign[0]}): choose an empty folder"
            )
        if begun is not None and not overwrite and begun.get("fingerprint") != manifest.fingerprint:
            theirs = {key: begun.get(key) for key in manifest.content}
            changed = ", ".join(list(changed_fields(manifest.content, theirs))[:5]) or "fingerprint"
            raise RequestError(
                f"--output {self.location.url} was begun with another request (changed: {changed}): "
                f"use the same settings, another output, or --overwrite to start anew"
            )

    def begin(self, manifest: Manifest, overwrite: bool) -> None:
        """Write the manifest, after `check`; ``overwrite`` deletes what earlier runs wrote.

        Raises:
            RequestError: the folder cannot be written.
        """
        try:
            if overwrite:
                self.clear()
            if self.read_json("manifest.json") is None:
                self.write("manifest.json", manifest.to_json().encode("utf-8"))
        except STORAGE_ERRORS as error:
            raise self.unusable(error) from error

    def unusable(self, error: BaseException) -> RequestError:
        return RequestError(f"--output {self.location.url} cannot be used: {storage_problem(error)}")

    def bucket_exists(self) -> bool:
        """False if the output's bucket is surely not there: some servers would create a mistyped one."""
        if not self.location.is_object_store:
            return True
        try:
            return bool(self.location.fs.exists(self.location.path.split("/")[0]))
        except PermissionError:  # a role may be allowed to write below a prefix and to see nothing else
            return True

    def foreign_names(self) -> list[str]:
        """Names in the folder while it has no manifest; a crash may have left a part of one, a lease or a probe."""
        if not self.location.fs.exists(self.location.path):
            return []
        names = (file_name(path) for path in self.location.fs.ls(self.location.path, detail=False))
        left_behind = ("manifest.json.part", LEASE, PROBE)
        return sorted(name for name in names if name and not name.startswith(left_behind))

    def clear(self) -> None:
        """Delete what earlier runs of the job wrote, and nothing else: first what says that it is done, last whose it
        is, so that a crash in between leaves an output that a run can take up or clear again."""
        fs = self.location.fs
        own = [(self.location / name).path for name in ("_SUCCESS", "summary.json", "vocabulary.safetensors")]
        for path in [*own, self.checkpoint.path, *self.rows_files(), (self.location / "manifest.json").path]:
            if fs.exists(path):
                fs.rm(path, recursive=True)

    def recover(self) -> None:
        """Delete rows files without a committed checkpoint, and checkpoints that were never committed."""
        fs = self.location.fs
        checkpoints = [path for path in self.checkpoint_files() if path.endswith(".parquet")]
        committed = {file_name(path) for path in checkpoints if not path.endswith(PENDING_SUFFIX)}
        counted = set((self.read_json("_checkpoint/counted.json") or {}).get("files", ()))
        for path in self.rows_files():
            if checkpoint_name(path) not in committed and file_name(path) not in counted:
                fs.rm_file(path)
        for path in checkpoints:
            if path.endswith(PENDING_SUFFIX):
                fs.rm_file(path)

    def reopen(self) -> None:
        """Make a finished output one that goes on; its rows files still count."""
        files = [file_name(path) for path in self.rows_files()]
        self.write("_checkpoint/counted.json", json.dumps({"files": files}).encode("utf-8"))
        self.location.fs.rm_file((self.location / "_SUCCESS").path)

    def finish(self) -> None:
        """Mark the job as done; only then the checkpoint goes."""
        self.write("_SUCCESS", b"")
        if self.location.fs.exists(self.checkpoint.path):
            self.location.fs.rm(self.checkpoint.path, recursive=True)

    def write_summary(self, summary: dict[str, Any]) -> None:
        self.write("summary.json", json.dumps(summary, indent=1, ensure_ascii=False).encode("utf-8"))

    def write(self, name: str, content: bytes, writer: str = "") -> None:
        """Write a small file whole: a crash leaves the old content or none.

        Args:
            name: relative to the output.
            content: the file's.
            writer: tells runs apart that may write the same file at the same moment.
        """
        target = (self.location / name).path
        if not self.location.is_object_store:  # there a new folder could mean a new bucket
            self.location.fs.makedirs(posixpath.dirname(target), exist_ok=True)
        if not self.location.is_local:
            self.location.fs.pipe_file(target, content)
            return
        part = f"{target}{writer}.part"
        self.location.fs.pipe_file(part, content)
        self.location.fs.mv(part, target)

    def read_json(self, name: str) -> dict[str, Any] | None:
        try:
            document = json.loads(self.location.fs.cat_file((self.location / name).path))
        except FileNotFoundError:
            return None
        return document if isinstance(document, dict) else {}

    def read_embeddings(self) -> VocabularyEmbeddings | None:
        """The vocabulary's embeddings if an earlier run got that far."""
        try:
            return embeddings_from_bytes(self.location.fs.cat_file((self.location / "vocabulary.safetensors").path))
        except (FileNotFoundError, EmbeddingsError):
            return None

    def write_embeddings(self, embeddings: VocabularyEmbeddings) -> None:
        self.write("vocabulary.safetensors", embeddings_to_bytes(embeddings))


def parquet_files(folder: Location) -> list[str]:
    """Paths of the Parquet files that lie in a folder itself; none if there is no such folder."""
    try:
        paths = folder.fs.ls(folder.path, detail=False)
    except FileNotFoundError:
        return []
    return sorted(str(path) for path in paths if str(path).endswith(".parquet"))


def file_name(path: str) -> str:
    return posixpath.basename(str(path).rstrip("/"))


def checkpoint_name(rows_path: str) -> str:
    """``NAME-0.parquet`` holds rows whose checkpoint is ``NAME.parquet``."""
    return file_name(rows_path).removesuffix(".parquet").rpartition("-")[0] + ".parquet"
