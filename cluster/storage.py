"""Local and object storage through fsspec, with one interface for reading and writing.

Credentials come from the environment of each process (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ``GOOGLE_...``,
instance roles). Addresses with credentials are refused, because addresses are written to logs and manifests.
"""

import os
import posixpath
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.fs
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileOpener, LocalFileSystem

from cliper.files import AZURE, find_address, is_local, storage_problem
from schemas.errors import RequestError

S3_ATTEMPTS = 12
"""Attempts of a request while the job runs. The maximum pause between them doubles from 1 s up to 20 s."""

OBJECT_STORES = {"s3", "gs", "oss", "oci"} | AZURE


@dataclass(frozen=True)
class Location:
    """A file, folder or prefix on a file system. ``str()`` gives its flag and URL, for messages.

    Attributes:
        fs: the file system. It never caches listings.
        path: the path as the file system knows it, without protocol and without a slash at the end.
        flag: the command-line flag that named it, such as ``--output``. Equality ignores it.
    """

    fs: AbstractFileSystem
    path: str
    flag: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.flag} {self.url}".strip()

    @property
    def url(self) -> str:
        return str(self.fs.unstrip_protocol(self.path)) if not self.is_local else self.path

    @property
    def is_local(self) -> bool:
        return is_local(self.fs)

    @property
    def is_object_store(self) -> bool:
        """True if folders are only prefixes of names."""
        return not OBJECT_STORES.isdisjoint(
            [self.fs.protocol] if isinstance(self.fs.protocol, str) else self.fs.protocol
        )

    def with_retries(self) -> "Location":
        """The same location with a client that retries transient faults for a minute or two.

        This changes S3 only. The clients of Google Cloud Storage (6 attempts within about 30 s) and Azure (4 attempts)
        always retry, and gcsfs and adlfs have no option for the number of attempts. Other file systems do not retry.
        """
        if self.fs.protocol != ("s3", "s3a"):
            return self
        retries = {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": S3_ATTEMPTS}}}
        return replace(self, fs=type(self.fs)(*self.fs.storage_args, **self.fs.storage_options | retries))

    def __truediv__(self, name: str) -> "Location":
        return replace(self, path=posixpath.join(self.path, name))

    def refusal(self, error: BaseException, verb: str = "used") -> RequestError:
        """The error for a location that cannot be used, read or written."""
        return RequestError(f"{self} cannot be {verb}: {storage_problem(error)}")

    def arrow_fs(self) -> pyarrow.fs.FileSystem:
        """The same file system for pyarrow. A local file is on the disk when it is closed."""
        fs = SyncedFileSystem() if self.is_local else self.fs
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))


class SyncedFile(LocalFileOpener):
    """A local file that a power failure does not leave as a name without content, once it is closed."""

    def close(self) -> None:
        if not self.closed and self.writable():
            self.flush()
            os.fsync(self.fileno())
        super().close()


class SyncedFileSystem(LocalFileSystem):
    """The local file system with `SyncedFile`."""

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> SyncedFile:
        return SyncedFile(path, mode, fs=self, **options)


def open_location(address: str, flag: str) -> Location:
    """The location of an address. Arguments and errors as for `cliper.files.find_address`."""
    return Location(*find_address(address, flag), flag)
