"""An output folder of the labelling job, made by hand from drawn pictures whose masks are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from demo.world.names import NAMES
from demo.world.scene import draw
from schemas.manifest import Manifest
from schemas.rows import ROW_SCHEMA, Status
from schemas.runs import annotations_from_labels

HEIGHT, WIDTH = 48, 64


def label_map(seed: int) -> np.ndarray:
    """The true label map of a drawn picture, integers [height, width]."""
    return draw(seed, HEIGHT, WIDTH).labels.astype(np.int64)


def row(seed: int, labels: np.ndarray) -> dict[str, Any]:
    """A row with these labels; a class's score is 0.5 to 0.9 where it is present, growing with the seed, else 0.1."""
    present = np.isin(np.arange(1, len(NAMES) + 1), labels)
    scores = np.where(present, 0.5 + 0.4 * (seed % 10) / 10, 0.1).astype(np.float32)
    image_id = f"a.tar/{seed:03}.jpg"
    return {
        "image_id": image_id, "uri": f"tar://{seed:03}.jpg::/nowhere/a.tar", "shard": "a.tar", "shard_images": None,
        "width": WIDTH, "height": HEIGHT, "status": Status.OK, "error": None, "class_scores": scores,
        "annotations": annotations_from_labels(labels, scores),
    }  # fmt: skip


def failure(name: str) -> dict[str, Any]:
    nothing = dict.fromkeys(ROW_SCHEMA.names)
    ids = {"image_id": f"a.tar/{name}", "uri": f"tar://{name}::/nowhere/a.tar", "shard": "a.tar"}
    return nothing | ids | {"status": Status.EMPTY, "error": f"{name}: no bytes"}


def write_labels(folder: Path, rows: list[dict[str, Any]], finished: bool = True) -> Path:
    """Write rows in two files whose order is not that of the image ids."""
    folder.mkdir(parents=True)
    classes = [{"name": name, "queries": [name]} for name in NAMES]
    manifest = Manifest({"address": "/nowhere"}, {"classes": classes}, {}, {})
    (folder / "manifest.json").write_text(manifest.to_json())
    schema = ROW_SCHEMA.with_metadata(manifest.parquet_metadata())
    for number, part in enumerate((rows[1::2], rows[::2])):
        pq.write_table(pa.Table.from_pylist(part, schema=schema), folder / f"run_{number:06}-0.parquet")
    if finished:
        (folder / "_SUCCESS").touch()
    return folder
