"""An output folder of the labelling job, made by hand from drawn images whose masks are known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.output.folder import Output
from cluster.storage import open_location
from demo.world.names import NAMES
from demo.world.scene import draw
from schemas.manifest import labelling_manifest
from schemas.rows import ROW_SCHEMA, Status
from schemas.runs import annotations_from_labels

HEIGHT, WIDTH = 48, 64
SETTINGS = {"score_threshold": 0.7, "class_score_thresholds": [], "precision": "fp32"}
Row = dict[str, Any]


def label_map(seed: int) -> np.ndarray:
    """The true label map of a drawn image, integers [height, width]."""
    return draw(seed, HEIGHT, WIDTH).labels.astype(np.int64)


def scores_of(seed: int, labels: np.ndarray) -> np.ndarray:
    """0.5 to 0.9 for classes that are present, growing with the seed, and 0.1 for the others."""
    present = np.isin(np.arange(1, len(NAMES) + 1), labels)
    return np.where(present, 0.5 + 0.4 * (seed % 10) / 10, 0.1).astype(np.float32)


def row(seed: int, labels: np.ndarray, scores: np.ndarray | None = None, **changes: Any) -> Row:
    """A row with these labels.

    Args:
        seed: makes the image's name.
        labels: integers [height, width].
        scores: of all classes; by default those of `scores_of`.
        changes: other columns with other values.
    """
    scores = scores_of(seed, labels) if scores is None else scores
    image_id, (height, width) = f"a.tar/{seed:03}.jpg", labels.shape
    return {
        "image_id": image_id, "uri": f"tar://{seed:03}.jpg::/nowhere/a.tar", "shard": "a.tar", "shard_images": None,
        "width": width, "height": height, "status": Status.OK, "error": None, "class_scores": scores,
        "class_probabilities": scores**2, "lost_to": [{"category_id": 1, "background": "wall"}],
        "annotations": annotations_from_labels(labels, scores),
    } | changes  # fmt: skip


def failure(name: str, status: Status = Status.EMPTY, error: str = "no bytes") -> Row:
    nothing = dict.fromkeys(ROW_SCHEMA.names)
    ids = {"image_id": f"a.tar/{name}", "uri": f"tar://{name}::/nowhere/a.tar", "shard": "a.tar"}
    return nothing | ids | {"status": status, "error": f"{name}: {error}"}


def shuffled(rows: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Row]]:
    """Rows as two files whose order is not that of the image ids."""
    return rows[1::2], rows[::2]


def write_labels(
    folder: Path,
    *files: Sequence[Row],
    class_names: Sequence[str] = NAMES,
    finished: bool = True,
    settings: Mapping[str, Any] = SETTINGS,
) -> Path:
    """Write rows files of several row groups. Of an output that is not finished, only the first file counts."""
    (folder / "rows").mkdir(parents=True)
    manifest = labelling_manifest(
        input={"address": "/nowhere", "format": "tar", "limit": None},
        vocabulary={
            "classes": [{"name": name, "queries": [name]} for name in class_names],
            "background": ["wall"], "templates": ["a {}"], "embeddings_sha256": None,
        },
        models={"clip": {"name": "demo-clip", "revision": "abc123"}},
        settings=settings,
    )  # fmt: skip
    (folder / "manifest.json").write_text(manifest.to_json())
    schema = ROW_SCHEMA.with_metadata(manifest.parquet_metadata())
    for number, rows in enumerate(files):
        table = pa.Table.from_pylist(list(rows), schema)
        pq.write_table(table, folder / f"rows/run_{number:06}-0.parquet", row_group_size=3)
    if finished:
        summary = {"new_images": sum(map(len, files)), "seconds": 2.0, "bytes_read": 1e6}
        (folder / "summary.json").write_text(json.dumps(summary))
        output = Output(open_location(str(folder), "--labels"))
        output.finish(output.data_files())
    else:
        (folder / "_checkpoint/run").mkdir(parents=True)
        (folder / "_checkpoint/run/run_000000.parquet").touch()
    return folder
