"""Reading the files of a request, local or from any storage that fsspec knows. The only module of
`cliper` that meets fsspec.

Credentials come from the environment. Addresses with credentials are refused, because addresses are written to logs and
manifests.
"""

import os
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import fsspec
from botocore.exceptions import BotoCoreError
from fsspec import AbstractFileSystem

from schemas.errors import RequestError

STORAGE_ERRORS = (OSError, BotoCoreError)
"""What file systems raise. fsspec's drivers raise OSError, except for errors inside the S3 client itself."""

CHAINED = re.compile("::|://")
"""What addresses have and local paths hardly ever do."""
AZURE = {"abfs", "abfss", "az"}
Parsed = TypeVar("Parsed")


def parse_text(flag: str, address: str, parse: Callable[[str], Parsed]) -> Parsed:
    """Read a text file and parse it. Raises RequestError as `parse_file` does."""
    return parse_file(flag, address, lambda data: parse(decode_text(data)))


def decode_text(data: bytes) -> str:
    """UTF-8 text. Raises ValueError: it is something else."""
    if b"\0" in data:  # which UTF-8 allows, and UTF-16 is full of
        raise ValueError("it is not UTF-8 text (it has null characters, as UTF-16 has)")
    return data.decode("utf-8")


def parse_file(flag: str, address: str, parse: Callable[[bytes], Parsed]) -> Parsed:
    """Read a file and parse it.

    Raises:
        RequestError: it cannot be read, or ``parse`` raised ValueError. The message names the flag and the file.
    """
    fs, path = find_address(address, flag)
    try:
        # fsspec cannot read pipes, because it looks for their end first.
        data = Path(path).read_bytes() if is_local(fs) else fs.cat_file(path)
    except STORAGE_ERRORS as error:
        raise RequestError(f"{flag} {address} cannot be read: {storage_problem(error)}") from error
    return parse_data(f"{flag} {address}", data, parse)


def parse_data(place: str, data: bytes, parse: Callable[[bytes], Parsed]) -> Parsed:
    """Parse the bytes of a file. Raises RequestError, which begins with ``place``: ``parse`` raised ValueError."""
    try:
        return parse(data)
    except UnicodeDecodeError as error:
        raise RequestError(f"{place}: it is not UTF-8 text (byte {error.start})") from error
    except RecursionError as error:
        raise RequestError(f"{place}: it is nested too deeply") from error
    except ValueError as error:
        raise RequestError(f"{place}: {error}") from error


def find_address(address: str, flag: str) -> tuple[AbstractFileSystem, str]:
    """The file system of an address, a local path or a URL that fsspec knows, and the path on it.

    The file system never caches listings. The path has neither a protocol nor a slash at the end.

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
        return fsspec.filesystem("file", use_listings_cache=False), real_path(address)
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
    path = path.rstrip("/") or path
    return fs, real_path(path) if is_local(fs) else path


def is_local(fs: AbstractFileSystem) -> bool:
    """True for the file system of this machine."""
    return "file" in fs.protocol


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


@dataclass(frozen=True)
class Folder:
    """A folder of a request, local or in any storage.

    Attributes:
        flag, address: what it was given with, for messages.
        fs, path: see `find_address`.
    """

    flag: str
    address: str
    fs: AbstractFileSystem
    path: str

    @classmethod
    def of(cls, flag: str, address: str) -> "Folder":
        """Raises RequestError as `find_address` does."""
        return cls(flag, address, *find_address(address, flag))

    def place(self, name: str) -> str:
        """A file or folder in it, for messages; the folder itself if there is no name."""
        return f"{self.flag} {posixpath.join(self.address, name) if name else self.address}"

    def refusal(self, name: str, reason: str) -> RequestError:
        """The error for a file or folder in it."""
        return RequestError(f"{self.place(name)}: {reason}")

    def names(self, below: str) -> list[str]:
        """Files in a folder of it and below, relative to that folder and sorted, without hidden ones.

        Raises:
            RequestError: it cannot be listed. A folder that does not exist has no files.
        """
        top = posixpath.join(self.path, below)
        try:
            found = [posixpath.relpath(path, top) for path in self.fs.find(top)]
        except STORAGE_ERRORS as error:
            raise self.refusal(below, f"it cannot be listed: {storage_problem(error)}") from error
        return sorted(name for name in found if not any(part.startswith(".") for part in name.split("/")))

    def read(self, name: str, max_bytes: int | None = None) -> bytes:
        """A file's content.

        Raises:
            RequestError: it cannot be read, or has more than ``max_bytes``.
        """
        path = posixpath.join(self.path, name)
        try:
            size = self.fs.size(path)
            if max_bytes is not None and size is not None and size > max_bytes:
                raise self.refusal(name, f"it has {size:,} bytes, more than --max-file-mb allows")
            return bytes(self.fs.cat_file(path))
        except STORAGE_ERRORS as error:
            raise self.refusal(name, f"it cannot be read: {storage_problem(error)}") from error
