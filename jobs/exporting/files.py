"""Files that make an export, or a part of it, complete."""

import hashlib

from cluster.output.files import atomic_write
from cluster.storage import Location


def write_bytes(target: Location, content: bytes) -> None:
    with atomic_write(target) as file:
        file.write(content)


def not_complete(folder: Location, *last: str) -> None:
    """Remove the files that are written last, so that an older export does not look like this one's end."""
    for name in last:
        target = folder / name
        if target.fs.exists(target.path):
            target.fs.rm_file(target.path)


def is_validation(image_id: str, fraction: float) -> bool:
    """True for this fraction of the images: always the same ones, whatever other images there are."""
    digest = hashlib.blake2b(image_id.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64
