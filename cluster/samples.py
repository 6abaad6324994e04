"""What is written of a copied image: its bytes, what was beside it, and its labels.

A copy of ``a/7.jpg`` keeps its siblings as ``a/7.txt``, and the other columns of its row of a table as ``a/7.json``.
Its labels are ``a/7.labels.json`` or ``a/7.labels.png``.
"""

import base64
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
from PIL import Image

from cluster.corpus.readers import Record
from cluster.output.files import atomic_write, split_id
from cluster.storage import Location
from schemas.label_json import label_json
from schemas.label_png import label_png
from schemas.runs import labels_from_annotations

LabelForm = Literal["json", "png", "none"]
LABEL_COLUMNS = ("image_id", "width", "height", "annotations")
Sample = tuple[Record, bytes | None]
"""An image and its labels, if they are copied."""


def label_file(row: Mapping[str, Any], form: LabelForm, class_names: Sequence[str]) -> bytes:
    """The content of an image's ``.labels.json`` or ``.labels.png``, from a row with `LABEL_COLUMNS`."""
    if form == "json":
        return label_json(row, class_names)
    labels = labels_from_annotations(row["annotations"], row["height"], row["width"])
    return label_png(labels, len(class_names))


def write_samples(samples: Iterable[Sample], labels_as: LabelForm, write: Callable[[str, bytes], None]) -> None:
    """Write images and what is beside them. Images that differ in their ending only share their siblings."""
    taken: set[str] = set()
    for record, labels in samples:
        assert record.data is not None, "failures are not copied"
        stem, ending = copy_name(record)
        write(f"{stem}{ending}", record.data)
        if labels is not None:
            name = f"{stem}.labels.{labels_as}"
            name = f"{stem}{ending}.labels.{labels_as}" if name in taken else name
            taken.add(name)
            write(name, labels)
        for sibling, content in siblings_of(record):
            name = f"{stem}.{sibling}"
            if name not in taken:
                taken.add(name)
                write(name, content)


def siblings_of(record: Record) -> Iterator[tuple[str, bytes]]:
    """Endings and contents of the files beside an image. The columns of a table are one, ``json``."""
    if isinstance(record.beside, pa.RecordBatch):
        (values,) = record.beside.to_pylist()
        yield "json", json.dumps(values, ensure_ascii=False, default=json_value).encode("utf-8")
    else:
        yield from (record.beside or {}).items()


def json_value(value: Any) -> str:
    """Values that JSON does not have: bytes as base64, dates and times in ISO format, others as they are printed."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def add_member(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_file(folder: Location, name: str, content: bytes) -> None:
    with atomic_write(folder / name) as file:
        file.write(content)


def copy_name(record: Record) -> tuple[str, str]:
    """The name of an image's copy, and its ending: its id, with the only dot of the last part before the
    ending. WebDataset requires that. Images from tables get the ending of their format."""
    stem, ending = split_id(record.image_id)
    folder, slash, name = stem.rpartition("/")
    return folder + slash + name.replace(".", "%2E"), ending or image_ending(record.data or b"")


def image_ending(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return f".{image.format or 'image'}".lower()
