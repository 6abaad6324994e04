"""Writing files whole: a name is there only when its content is complete."""

import contextlib
import os
import posixpath
import tempfile
from collections.abc import Iterator
from typing import IO

from cluster.storage import Location


@contextlib.contextmanager
def written_whole(location: Location) -> Iterator[IO[bytes]]:
    """A file to write to; it gets its name, and replaces an older one, when the block ends without an error.

    On this machine's disks it is renamed, elsewhere it is sent from a temporary file.

    Raises:
        OSError: it cannot be written.
    """
    if location.is_local:
        os.makedirs(posixpath.dirname(location.path), exist_ok=True)
        part = f"{location.path}.part"
        try:
            with open(part, "wb") as file:
                yield file
            os.replace(part, location.path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.remove(part)
        return
    with tempfile.NamedTemporaryFile() as spool:
        yield spool
        spool.flush()
        location.fs.put_file(spool.name, location.path)
