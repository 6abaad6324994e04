"""Local and object storage through fsspec, one way for reading and writing.

Credentials come from the environment of each process (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``, ``GOOGLE_...``,
instance roles); addresses that carry credentials are refused, because addresses are written to logs and manifests.
"""

import os
import posixpath
from dataclasses import dataclass
from urllib.parse import urlsplit

import fsspec
import pyarrow.fs
from botocore.exceptions import BotoCoreError
from fsspec import AbstractFileSystem

from schemas.errors import RequestError

STORAGE_ERRORS = (OSError, BotoCoreError)
"""What file systems raise: fsspec's drivers translate to OSError, except for what S3's client finds out by itself."""

S3_ATTEMPTS = 12
"""Tries of a request once the job runs; pauses between them double from at most 1 s to at most 20 s."""

OBJECT_STORES = {"s3", "gs", "abfs", "az", "oss", "oci"}


@dataclass(frozen=True)
class Location:
    """A file, folder or prefix on a file system.

    Attributes:
        fs: the file system; never caches listings.
        path: the path as the file system knows it, without protocol and without a slash at the end.
    """

    fs: AbstractFileSystem
    path: str

    @property
    def url(self) -> str:
        return str(self.fs.unstrip_protocol(self.path)) if not self.is_local else self.path

    @property
    def is_local(self) -> bool:
        return "file" in self.fs.protocol

    @property
    def is_object_store(self) -> bool:
        """Folders are only names there."""
        return not OBJECT_STORES.isdisjoint(
            [self.fs.protocol] if isinstance(self.fs.protocol, str) else self.fs.protocol
        )

    def patient(self) -> "Location":
        """The same location with a client that goes on trying for a minute or two, for faults that pass."""
        if self.fs.protocol != ("s3", "s3a"):
            return self
        retries = {"config_kwargs": {"retries": {"mode": "standard", "max_attempts": S3_ATTEMPTS}}}
        return Location(type(self.fs)(*self.fs.storage_args, **self.fs.storage_options | retries), self.path)

    def __truediv__(self, name: str) -> "Location":
        return Location(self.fs, posixpath.join(self.path, name))

    def arrow_fs(self) -> pyarrow.fs.FileSystem:
        """The same file system for pyarrow."""
        if self.is_local:
            return pyarrow.fs.LocalFileSystem()
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self.fs))


def open_location(address: str, flag: str) -> Location:
    """The location of an address: a local path or a URL that fsspec knows.

    Args:
        address: what the user gave.
        flag: the flag it was given with, for the error's text.

    Raises:
        RequestError: credentials in the address, an unknown protocol, or a driver that is not installed.
    """
    parts = urlsplit(address)
    if "@" in parts.netloc or (parts.scheme in {"http", "https"} and parts.query):
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
    location = Location(fs, path.rstrip("/") or path)
    return Location(fs, os.path.realpath(location.path)) if location.is_local else location


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
