"""Local and object storage through fsspec, with one interface for reading and writing.

Credentials come from the environment of each process (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ``GOOGLE_...``,
instance roles). Addresses with credentials are refused, because addresses are written to logs and manifests.
"""

import os
import posixpath
import re
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

import fsspec
import pyarrow.fs
from botocore.exceptions import BotoCoreError
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileOpener, LocalFileSystem

from schemas.errors import RequestError

STORAGE_ERRORS = (OSError, BotoCoreError)
"""What file systems raise. fsspec's drivers raise OSError, except for errors inside the S3 client itself."""

S3_ATTEMPTS = 12
"""Attempts of a request while the job runs. The maximum pause between them doubles from 1 s up to 20 s."""

CHAINED = re.compile("::|://")
"""What addresses have and local paths hardly ever do."""
AZURE = {"abfs", "abfss", "az"}
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
        return "file" in self.fs.protocol

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
    """The location of an address: a local path or a URL that fsspec knows.

    Args:
        address: what the user gave.
        flag: the flag that it was given with.

    Raises:
        RequestError: credentials in the address, an unknown protocol, or a driver that is not installed.
    """
    if not address:
        raise RequestError(f"{flag} is empty: name a local path or a URL such as s3://bucket/prefix")
    if os.path.exists(address) or not CHAINED.search(address):
        # A path that exists is taken as it is written, though fsspec would read "::" as a chain of addresses.
        return Location(fsspec.filesystem("file", use_listings_cache=False), real_path(address), flag)
    if any(map(has_credentials, address.split("::"))):
        raise RequestError(
            f"{flag} carries credentials in its address, which would end up in logs: pass them in the environment"
        )
    try:
        fs, path = fsspec.core.url_to_fs(address, use_listings_cache=False, skip_instance_cache=False)
    except ImportError as error:
        raise RequestError(f"{flag} {address}: {error}") from error
    except ValueError as error:
        raise RequestError(
            f"{flag} {address}: {error}; use a local path or a URL such as s3://bucket/prefix"
        ) from error
    location = Location(fs, path.rstrip("/") or path, flag)
    return replace(location, path=real_path(location.path)) if location.is_local else location


def real_path(path: str) -> str:
    """An absolute local path without links. A pipe, such as bash makes for ``<(...)``, has none and stays."""
    path = os.path.expanduser(path)
    is_pipe = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    return path if is_pipe else os.path.realpath(path)


def has_credentials(address: str) -> bool:
    """True if one part of a chain of addresses carries a password, a key or a signature."""
    parts = urlsplit(address)
    user = "@" in parts.netloc and parts.scheme not in AZURE  # an Azure container is written before the @
    return bool(user or parts.password or (parts.scheme in {"http", "https"} and parts.query))


def storage_problem(error: BaseException) -> str:
    """A storage error in a few words, without request ids and addresses."""
    match error:
        case FileNotFoundError():
            return "it does not exist"
        case PermissionError():
            return "access is denied: check the credentials and the bucket's permissions"
        case OSError() if error.strerror:
            return error.strerror
        case _:
            return " ".join(str(error).split())[:200] or type(error).__name__
