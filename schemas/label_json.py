"""An image's labels as a JSON file beside it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any


def label_json(row: Mapping[str, Any], class_names: Sequence[str]) -> bytes:
    """The labels of a row: ``image_id``, ``width``, ``height`` and ``annotations``, which have the fields of
    `schemas.rows.ANNOTATION` and the name of their class as ``category``.

    Args:
        row: with these columns, and status ok.
        class_names: in vocabulary order.
    """
    annotations = [entry | {"category": class_names[entry["category_id"] - 1]} for entry in row["annotations"]]
    document = {name: row[name] for name in ("image_id", "width", "height")} | {"annotations": annotations}
    return json.dumps(document, ensure_ascii=False).encode("utf-8")
