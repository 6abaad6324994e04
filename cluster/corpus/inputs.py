"""What names a corpus, and what the storage finds under these names."""

import itertools
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import bracex

from cliper.files import STORAGE_ERRORS, storage_problem
from cluster.storage import Location, open_location
from schemas.errors import RequestError

Found = dict[str, dict[str, Any]]
"""What the storage says of files, by path."""
PATTERN = "*?["
MAX_PATHS = 1_000_000
"""Most paths that a pattern with braces may stand for."""


@dataclass(frozen=True)
class Input:
    """What names a corpus: an address, or a list of addresses in a text file.

    Attributes:
        address: as manifests keep it, ``@`` and a URL for a list.
        places: the addresses, on one file system.
    """

    address: str
    places: tuple[Location, ...]

    def __str__(self) -> str:
        return f"{self.places[0].flag} {self.address}"

    def with_retries(self) -> "Input":
        """The same input, with a storage client that goes on trying when the storage does not answer."""
        return replace(self, places=tuple(place.with_retries() for place in self.places))


def open_input(address: str, flag: str = "--input") -> Input:
    """The input of an address: a path or URL, with patterns if wanted, or ``@FILE`` with one of these on each line.

    Raises:
        RequestError: there is nothing, the list cannot be read, or its addresses are on several file systems.
    """
    if not address.startswith("@"):
        place = open_location(address, flag)
        return Input(place.url, (place,))
    file = open_location(address[1:], flag)
    try:
        content = file.fs.cat_file(file.path).decode("utf-8")
    except STORAGE_ERRORS as error:
        raise file.refusal(error, "read") from error
    except UnicodeDecodeError:
        raise RequestError(f"{file} is no UTF-8 text: write one address on each line") from None
    places = tuple(open_location(line.strip(), flag) for line in content.splitlines() if line.strip())
    if not places:
        raise RequestError(f"{file} lists nothing: write one address on each line")
    if any(place.fs != places[0].fs for place in places):
        raise RequestError(f"{file} lists addresses on several file systems: give each a job of its own")
    return Input(f"@{file.url}", places)


def list_files(source: Input) -> tuple[str, Found]:
    """The folder that names are relative to, and all files of an input by path.

    Raises:
        RequestError: a part of the input cannot be listed, does not exist or matches nothing.
    """
    bases: list[str] = []
    found: Found = {}
    for place in chain.from_iterable(map(places_of, source.places)):
        try:
            base, files = list_path(place)
        except Exception as error:  # drivers let errors of their HTTP libraries through
            raise RequestError(f"{place}: {storage_problem(error)}") from error
        bases.append(base)
        found |= files
    return posixpath.commonpath(bases) if len(bases) > 1 else bases[0], found


def places_of(place: Location) -> list[Location]:
    """The places that a pattern with braces stands for; the place itself if it has none or exists as it is written.

    Raises:
        RequestError: it stands for too many.
    """
    if "{" not in place.path or place.fs.exists(place.path):
        return [place]
    try:
        return [replace(place, path=path) for path in bracex.iexpand(place.path, keep_escapes=True, limit=MAX_PATHS)]
    except bracex.ExpansionLimitException:
        raise RequestError(f"{place} stands for more than {MAX_PATHS:,} paths: use * or @LIST.txt") from None


def list_path(place: Location) -> tuple[str, Found]:
    """The folder that names are relative to, and all files of one path, which may be a pattern.

    Raises:
        OSError: it cannot be listed or does not exist.
    """
    fs, path = place.fs, place.path
    if not fs.exists(path) and any(character in path for character in PATTERN):
        fixed = itertools.takewhile(lambda part: not any(character in part for character in PATTERN), path.split("/"))
        matches = fs.glob(path, detail=True)
        for folder in [name for name, info in matches.items() if info["type"] == "directory"]:
            matches |= fs.find(folder, detail=True)
        return "/".join(fixed), regular(matches)
    info = fs.info(path)
    if info["type"] == "directory":
        return path, regular(fs.find(path, detail=True))
    return posixpath.dirname(path), regular({path: info})


def regular(found: Found) -> Found:
    """Only the files; folders, pipes and sockets are left out."""
    return {str(path): info for path, info in found.items() if info["type"] not in ("directory", "other")}


def version_of(info: Mapping[str, Any]) -> str:
    """The size of a file, and its ETag or time of modification, as file systems name them."""
    marks = (str(info[name]) for name in ("ETag", "etag", "LastModified", "mtime", "created") if info.get(name))
    return f"{info.get('size')} {next(marks, '')}"
