"""Files of an output: written atomically, and named after images."""

import contextlib
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator
from typing import IO

from cliper.decode import IMAGE_ENDINGS
from cluster.storage import Location


@contextlib.contextmanager
def atomic_write(location: Location, writer: str = "") -> Iterator[IO[bytes]]:
    """Open a file to write. It appears, and replaces an older one, when the block ends without an error.

    A local file is written under another name and then renamed. A remote one is uploaded from a temporary file.

    Args:
        location: the file.
        writer: a part of the other name, if several processes may write the file at the same moment.

    Raises:
        OSError: it cannot be written.
    """
    if not location.is_object_store:  # making a folder there could make a new bucket
        location.fs.makedirs(posixpath.dirname(location.path), exist_ok=True)
    if location.is_local:
        part = f"{location.path}{writer}.part"
        try:
            with open(part, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())  # a power failure must not leave the name without the content
            os.replace(part, location.path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(part)
        return
    with tempfile.NamedTemporaryFile() as spool:
        yield spool
        spool.flush()
        location.fs.put_file(spool.name, location.path)


def file_name(path: str) -> str:
    return posixpath.basename(str(path).rstrip("/"))


def split_id(image_id: str) -> tuple[str, str]:
    """A unique relative path for an image, and the extension of its name. Rows of tables have no extension.

    ``%``, ``#`` and parts such as ``..`` are escaped, so that the path never leaves the folder that it is used in. The
    ``#2`` of ``a.tar/b.jpg#2``, the second member of a tar with the same name, stays: ``a.tar/b#2`` and ``.jpg``.
    """
    match = re.fullmatch(r"(.*?)((?:#\d+)?)", image_id, re.DOTALL)
    assert match is not None, "anything matches"
    stem, extension = posixpath.splitext(match[1])
    if extension.lower() in IMAGE_ENDINGS:
        return escaped(stem) + match[2], extension
    return escaped(image_id), ""


def escaped(path: str) -> str:
    parts = (part.replace("%", "%25").replace("#", "%23") for part in path.split("/"))
    return "/".join({"": "%2F", ".": "%2E", "..": "%2E%2E"}.get(part, part) for part in parts)
