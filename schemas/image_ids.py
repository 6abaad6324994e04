"""A file of image ids: the marks of a report, which ``filter --exclude-ids`` and ``annotate --relabel`` read.

UTF-8 text, one id per line as in column ``image_id``. Empty lines mean nothing. An id that begins with ``"``, has a
line break or has white space around it is written as a JSON string.
"""

import hashlib
import json
from collections.abc import Iterable


def format_image_ids(image_ids: Iterable[str]) -> str:
    """The text of a file of ids."""
    return "".join(f"{image_id if is_plain(image_id) else json.dumps(image_id)}\n" for image_id in image_ids)


def is_plain(image_id: str) -> bool:
    return image_id.strip().splitlines() == [image_id] and not image_id.startswith(('"', "\ufeff"))


def parse_image_ids(text: str) -> tuple[str, ...]:
    """The ids of a file, in its order and without repetitions.

    Raises:
        ValueError: no id, or a damaged JSON string. The message names the line.
    """
    found: dict[str, None] = {}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = line.strip()
        if line.startswith('"'):
            try:
                line = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} begins with a quote and is no JSON string ({error})") from error
        if line:
            found[line] = None
    if not found:
        raise ValueError("there is no image id in it: write one per line")
    return tuple(found)


def digest_of(image_ids: Iterable[str]) -> str:
    """SHA-256 of ids in their order, for manifests."""
    digest = hashlib.sha256()
    for image_id in image_ids:
        digest.update(f"{image_id}\0".encode())
    return digest.hexdigest()
