"""Names of files that are made from image ids: unique, and never outside the folder that they are written to."""

import posixpath
import re

from cluster.corpus.readers import IMAGE_SUFFIXES


def split_id(image_id: str) -> tuple[str, str]:
    """An image id without its ending, as a relative path, and the ending; a table's rows have none.

    ``%``, ``#`` and parts such as ``..`` are escaped. What remains of ``#`` is the mark of a tar member whose name
    occurs again: ``a.tar/b.jpg#2`` becomes ``a.tar/b#2`` and ``.jpg``.
    """
    match = re.fullmatch(r"(.*?)((?:#\d+)?)", image_id, re.DOTALL)
    assert match is not None, "anything matches"
    stem, ending = posixpath.splitext(match[1])
    if ending.lower() in IMAGE_SUFFIXES:
        return escaped(stem) + match[2], ending
    return escaped(image_id), ""


def escaped(path: str) -> str:
    parts = (part.replace("%", "%25").replace("#", "%23") for part in path.split("/"))
    return "/".join({"": "%2F", ".": "%2E", "..": "%2E%2E"}.get(part, part) for part in parts)
